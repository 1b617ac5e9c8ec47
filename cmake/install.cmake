# Install rules: the library, its headers, the command, a config package and a pkg-config file.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(zbccl_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/zbccl)

install(TARGETS zbccl EXPORT zbccl-targets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT runtime NAMELINK_COMPONENT development
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/zbccl DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        COMPONENT development FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp" PATTERN "*.cuh")
install(EXPORT zbccl-targets NAMESPACE zbccl:: DESTINATION ${zbccl_cmake_dir} COMPONENT development)

file(RELATIVE_PATH zbccl_bin_to_lib ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
if(TARGET zbccl_command)
  # In a wheel it lies in a folder of the package, and the library beside that.
  set_target_properties(zbccl_command PROPERTIES INSTALL_RPATH "$ORIGIN/${zbccl_bin_to_lib};$ORIGIN/..")
  install(TARGETS zbccl_command RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT runtime)
endif()

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/zbcclConfig.cmake.in
                              ${PROJECT_BINARY_DIR}/cmake/zbcclConfig.cmake
                              INSTALL_DESTINATION ${zbccl_cmake_dir})
# The C ABI may change with the major version only, and before 1.0 with every minor one.
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(zbccl_compatibility SameMinorVersion)
else()
  set(zbccl_compatibility SameMajorVersion)
endif()
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cmake/zbcclConfigVersion.cmake
                                 COMPATIBILITY ${zbccl_compatibility})
install(FILES ${PROJECT_BINARY_DIR}/cmake/zbcclConfig.cmake ${PROJECT_BINARY_DIR}/cmake/zbcclConfigVersion.cmake
        DESTINATION ${zbccl_cmake_dir} COMPONENT development)

# The prefix in the .pc file is relative to the file, so an installed tree can be moved.
file(RELATIVE_PATH zbccl_pc_to_prefix ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" zbccl_pc_to_prefix "${zbccl_pc_to_prefix}")
configure_file(${CMAKE_CURRENT_LIST_DIR}/zbccl.pc.in ${PROJECT_BINARY_DIR}/cmake/zbccl.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/cmake/zbccl.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
        COMPONENT development)

install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/zbccl COMPONENT development)
