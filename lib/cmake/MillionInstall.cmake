# Installs libraries, headers and the package files: find_package(million) gives million::core,
# million::quant, ... as in this build. Headers keep their paths below include/million.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/million)
set(targets million_options)
set(native "")
if(MILLION_CUDA)
  set(native cuda_native)
endif()
foreach(layer kernels simt cuda_emulated ${native} device core quant results cache analysis model eval)
  list(APPEND targets million_${layer})
  set_target_properties(million_${layer} PROPERTIES EXPORT_NAME ${layer})
endforeach()
set_target_properties(million_options PROPERTIES EXPORT_NAME options)

install(TARGETS ${targets} EXPORT million-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT million-targets NAMESPACE million:: DESTINATION ${package_dir})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/kernels ${PROJECT_SOURCE_DIR}/lib
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/million
  FILES_MATCHING PATTERN "*.h"
  PATTERN cpu EXCLUDE PATTERN bench EXCLUDE PATTERN ref EXCLUDE
  PATTERN cmake EXCLUDE PATTERN build EXCLUDE)

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/million-config.cmake.in
  ${PROJECT_BINARY_DIR}/million-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/million-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/million-config.cmake
  ${PROJECT_BINARY_DIR}/million-config-version.cmake
  ${CMAKE_CURRENT_LIST_DIR}/MillionDependencies.cmake
  DESTINATION ${package_dir})
