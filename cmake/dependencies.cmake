# What the core is built on. All of it is header-only or linked statically: libzbccl.so needs only the C and C++ run time.
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(hwy REQUIRED)
set(OPENSSL_USE_STATIC_LIBS ON)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_path(ASIO_INCLUDE_DIR asio.hpp REQUIRED)

# {fmt} and spdlog by their headers only; base/format.cc and base/log.cc compile them once.
add_library(zbccl_fmt INTERFACE)
target_include_directories(zbccl_fmt SYSTEM INTERFACE $<TARGET_PROPERTY:fmt::fmt,INTERFACE_INCLUDE_DIRECTORIES>
                           $<TARGET_PROPERTY:spdlog::spdlog_header_only,INTERFACE_INCLUDE_DIRECTORIES>)
target_compile_definitions(zbccl_fmt INTERFACE SPDLOG_FMT_EXTERNAL)

add_library(zbccl_asio INTERFACE)
target_include_directories(zbccl_asio SYSTEM INTERFACE ${ASIO_INCLUDE_DIR})
target_compile_definitions(zbccl_asio INTERFACE ASIO_STANDALONE ASIO_NO_DEPRECATED)
