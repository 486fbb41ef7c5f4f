# Packages, each with its one home, and the helper that every layer uses to declare its library.
include(GNUInstallDirs)
find_package(OpenMP REQUIRED)  # before faiss: its config names OpenMP targets without finding them
find_package(faiss REQUIRED)
find_package(Eigen3 REQUIRED)
find_package(HDF5 REQUIRED COMPONENTS C HL)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(dnnl REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(TOMLPP REQUIRED IMPORTED_TARGET tomlplusplus)

add_library(million_options INTERFACE)
target_compile_options(million_options INTERFACE -Wall -Wextra -Wshadow -Wno-psabi
  $<$<BOOL:${MILLION_WERROR}>:-Werror>)
target_include_directories(million_options INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
if(MILLION_SANITIZE)
  target_compile_options(million_options INTERFACE -fsanitize=${MILLION_SANITIZE}
    -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS)
  target_link_options(million_options INTERFACE -fsanitize=${MILLION_SANITIZE})
endif()

# million_layer(core SOURCES a.cpp b.cpp PUBLIC deps... PRIVATE deps...)
function(million_layer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(million_${name} STATIC ${ARG_SOURCES})
  add_library(million::${name} ALIAS million_${name})
  target_link_libraries(million_${name} PUBLIC million_options ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
endfunction()
