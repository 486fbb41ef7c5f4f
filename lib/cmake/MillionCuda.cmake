# nvcc and the runtime for the device kernels (MILLION_CUDA). Needs the CUDA Toolkit, no GPU.
find_program(MILLION_NVCC nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(NOT MILLION_NVCC)
  message(FATAL_ERROR "MILLION_CUDA: found no nvcc in PATH, CUDA_HOME or /usr/local/cuda; install "
    "the CUDA Toolkit (12.8 or later), or leave MILLION_CUDA off")
endif()
if(NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER ${MILLION_NVCC})
endif()
# Machine code of the devices with tensor cores and asynchronous copies, and PTX from which a driver
# makes that of later ones (90: Blackwell data centre; 120: whatever follows).
set(MILLION_CUDA_ARCHITECTURES "80-real;86-real;89-real;90;120" CACHE STRING
  "Devices that the kernels are compiled for")
set(CMAKE_CUDA_ARCHITECTURES ${MILLION_CUDA_ARCHITECTURES})
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)  # cuBLAS lies in the Toolkit
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 knows no later standard than 17
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_EXTENSIONS OFF)
find_package(CUDAToolkit REQUIRED)
