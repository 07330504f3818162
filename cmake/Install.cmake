# `cmake --install`: the program, the libraries, the public headers and a CMake package.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/Adder)
cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_LIBDIR BASE_DIRECTORY ${CMAKE_INSTALL_FULL_BINDIR}
           OUTPUT_VARIABLE from_program_to_libraries)
set_target_properties(adder_ops adder_models adder PROPERTIES INSTALL_RPATH "$ORIGIN;${ADDER_TORCH_LIB}")
install(TARGETS adder_ops adder_models adder EXPORT AdderTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(ADDER_PROGRAM)
  set_target_properties(adder_program PROPERTIES
    INSTALL_RPATH "$ORIGIN/${from_program_to_libraries};${ADDER_TORCH_LIB}")
  install(TARGETS adder_program RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

# Semantic versioning: before 1.0 each minor version may change the interface.
set(compatibility SameMajorVersion)
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(compatibility SameMinorVersion)
endif()
cmake_path(GET ADDER_TORCH_LIB PARENT_PATH built_with_torch)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/AdderConfig.cmake.in ${PROJECT_BINARY_DIR}/AdderConfig.cmake
  INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/AdderConfigVersion.cmake COMPATIBILITY ${compatibility})
install(EXPORT AdderTargets NAMESPACE Adder:: DESTINATION ${package_folder})
install(FILES ${PROJECT_BINARY_DIR}/AdderConfig.cmake ${PROJECT_BINARY_DIR}/AdderConfigVersion.cmake
  ${PROJECT_SOURCE_DIR}/cmake/TorchVersion.cmake DESTINATION ${package_folder})
