# The packages of the libraries; read by this build and by the installed package file alike.
enable_language(C)             # FindHDF5 tries the C compiler
find_package(Threads REQUIRED)
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
if(MILLION_CUDA)
  find_package(CUDAToolkit REQUIRED)
endif()
