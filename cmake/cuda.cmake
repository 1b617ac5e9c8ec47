# Finds the CUDA compiler and the static run time. Sets ZBCCL_HAVE_CUDA, which the parts for the CUDA device ask; C++ sees
# it as ZBCCL_HAVE_CUDA=1. libcuda is not linked: it is found at run time, so that the library loads without a driver.
set(ZBCCL_HAVE_CUDA OFF)
if(NOT ZBCCL_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 90)  # H100 and H200; PTX for later ones comes with it
    endif()
    enable_language(CUDA)
    # By hand: CMake before 3.29 does not know what CUDA 13's compiler can do.
    string(APPEND CMAKE_CUDA_FLAGS " -std=c++20")
    find_package(CUDAToolkit 12.5 REQUIRED)
    set(ZBCCL_HAVE_CUDA ON)
    message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION} found; building for the host and the CUDA device")
  elseif(ZBCCL_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ZBCCL_CUDA is ON and no CUDA compiler was found; set CUDACXX or CMAKE_CUDA_COMPILER")
  else()
    message(STATUS "no CUDA compiler found; building for the host device")
  endif()
endif()
