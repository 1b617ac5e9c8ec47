# What makes a sanitizer build of GCC fast; a build for use is not touched.

# A null pointer that is used faults, and an access outside an object is the address sanitizer's to find: the checks for
# both take a fifth of the compiler's time. GCC says of every fence that the thread sanitizer does not see it, and GCC 12
# warns falsely of std::string and std::function in instrumented code.
if(ZBCCL_SANITIZE MATCHES undefined)
  set(sanitizer_options -fno-sanitize=null,object-size)
else()
  set(sanitizer_options $<$<COMPILE_LANGUAGE:CXX>:-Wno-tsan>)
endif()
set(false_warnings -Wno-restrict -Wno-array-bounds -Wno-maybe-uninitialized)
target_compile_options(zbccl_options INTERFACE ${sanitizer_options} "$<$<COMPILE_LANGUAGE:CXX,C>:${false_warnings}>")

# The headers that most files include, read once. Includes are checked by the other builds, which do without.
set(common_headers
  <algorithm> <array> <atomic> <chrono> <condition_variable> <cstring> <functional> <map> <memory> <mutex> <optional>
  <set> <span> <string> <string_view> <thread> <unordered_map> <vector>)
target_precompile_headers(zbccl_objects PRIVATE ${common_headers} <fmt/core.h>)
# These define macros first, or have flags of their own.
get_target_property(sources zbccl_objects SOURCES)
list(FILTER sources INCLUDE REGEX "/kernels/|/base/(format|log)\\.cc$")
set_source_files_properties(${sources} TARGET_DIRECTORY zbccl_objects PROPERTIES SKIP_PRECOMPILE_HEADERS ON)

file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/test_headers.cc CONTENT "")
add_library(zbccl_test_headers OBJECT ${CMAKE_CURRENT_BINARY_DIR}/test_headers.cc)
target_link_libraries(zbccl_test_headers PRIVATE zbccl_options GTest::gtest)
target_precompile_headers(zbccl_test_headers PRIVATE ${common_headers} <fstream> <sstream> <gtest/gtest.h>)
