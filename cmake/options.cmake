# What every target of the project is compiled with.
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

add_library(zbccl_options INTERFACE)
target_compile_features(zbccl_options INTERFACE cxx_std_20)
target_compile_options(zbccl_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX,C>:-Wall -Wextra -Wshadow -Wno-missing-field-initializers>
  $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor>)
if(ZBCCL_WERROR)
  target_compile_options(zbccl_options INTERFACE $<$<COMPILE_LANGUAGE:CXX,C>:-Werror>)
endif()
if(ZBCCL_SANITIZE)
  target_compile_options(zbccl_options INTERFACE -fsanitize=${ZBCCL_SANITIZE} -fno-omit-frame-pointer
                         -fno-sanitize-recover=all)
  target_link_options(zbccl_options INTERFACE -fsanitize=${ZBCCL_SANITIZE})
  if(ZBCCL_SANITIZE MATCHES undefined)
    # Values outside an enumeration come through the C boundary, where they are refused and tested; the check of virtual
    # tables reads through a descriptor, and reports falsely where a test has used them all up.
    target_compile_options(zbccl_options INTERFACE -fno-sanitize=enum,vptr)
  endif()
endif()
