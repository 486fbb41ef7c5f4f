# Options that every target shares, and the helper with which every layer declares its library.
include(GNUInstallDirs)
include(MillionDependencies)

# Warnings and sanitizers stay inside this build; a consumer gets the standard and the headers.
add_library(million_options INTERFACE)
target_compile_features(million_options INTERFACE cxx_std_20)
target_compile_options(million_options INTERFACE
  "$<BUILD_INTERFACE:-Wall;-Wextra;-Wshadow;-Wno-psabi;-Wno-restrict;-Wno-maybe-uninitialized>"
  $<BUILD_INTERFACE:$<$<BOOL:${MILLION_WERROR}>:-Werror>>)
target_include_directories(million_options INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/million>)
if(MILLION_SANITIZE)
  target_compile_options(million_options INTERFACE -fsanitize=${MILLION_SANITIZE}
    -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS)
  target_link_options(million_options INTERFACE -fsanitize=${MILLION_SANITIZE})
  if(MILLION_SANITIZE MATCHES "thread")
    # Eigen would start OpenMP teams of its own, whose barriers ThreadSanitizer does not see.
    target_compile_definitions(million_options INTERFACE EIGEN_DONT_PARALLELIZE)
  endif()
endif()

# million_layer(core SOURCES a.cpp b.cpp PUBLIC deps... PRIVATE deps...)
function(million_layer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(million_${name} STATIC ${ARG_SOURCES})
  add_library(million::${name} ALIAS million_${name})
  target_link_libraries(million_${name} PUBLIC million_options ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
endfunction()
