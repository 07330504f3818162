# The targets adder_torch (compile and link) and adder_pch (a precompiled torch header), from an installed torch package.
# find_package(Torch) is of no use here: it demands a CUDA toolkit for a CPU build and probes for a GPU.
set(torch_folder ${ADDER_TORCH})
if(NOT torch_folder)
  file(GLOB torch_folder ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
endif()
if(NOT EXISTS ${torch_folder}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "No LibTorch in '${torch_folder}': run 'make setup', or give -DADDER_TORCH=<folder of the torch package>")
endif()
set(ADDER_TORCH_LIB ${torch_folder}/lib)
include(TorchVersion)
adder_torch_version(${torch_folder} ADDER_TORCH_VERSION)

add_library(adder_torch INTERFACE)
# After all other folders: the package ships its own fmt, glog and pybind11 headers.
target_compile_options(adder_torch INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter ${torch_folder}/include -idirafter ${torch_folder}/include/torch/csrc/api/include>)
target_link_libraries(adder_torch INTERFACE ${ADDER_TORCH_LIB}/libtorch_cpu.so ${ADDER_TORCH_LIB}/libc10.so)
if(ADDER_CUDA)
  # Its operators register themselves when it is loaded; a linker that drops what nothing calls would lose them.
  target_link_libraries(adder_torch INTERFACE
    -Wl,--no-as-needed ${ADDER_TORCH_LIB}/libtorch_cuda.so ${ADDER_TORCH_LIB}/libc10_cuda.so -Wl,--as-needed adder_cuda)
endif()
list(APPEND CMAKE_BUILD_RPATH ${ADDER_TORCH_LIB})
# The wheel's own CUDA runtime and the like lie beside torch; its libraries find them through their own rpath.
target_link_options(adder_torch INTERFACE -Wl,--allow-shlib-undefined)

file(WRITE ${PROJECT_BINARY_DIR}/pch.cpp.in "// carries the precompiled header\n")
configure_file(${PROJECT_BINARY_DIR}/pch.cpp.in ${PROJECT_BINARY_DIR}/pch.cpp COPYONLY)
add_library(adder_pch STATIC ${PROJECT_BINARY_DIR}/pch.cpp)
target_link_libraries(adder_pch PUBLIC adder_options adder_torch adder_openmp)
target_precompile_headers(adder_pch PRIVATE <torch/torch.h>)

# Whether a source, or a header of the project that it includes, includes a header of LibTorch.
function(adder_includes_torch file result)
  get_property(known GLOBAL PROPERTY adder_includes_torch_${file})
  if("${known}" STREQUAL "")
    set(known OFF)
    set_property(GLOBAL PROPERTY adder_includes_torch_${file} OFF)
    file(STRINGS ${file} lines REGEX "^#include ")
    foreach(line IN LISTS lines)
      if(line MATCHES "<(torch|ATen|c10)/")
        set(known ON)
      elseif(line MATCHES "\"(.+)\"" AND EXISTS ${PROJECT_SOURCE_DIR}/${CMAKE_MATCH_1})
        adder_includes_torch(${PROJECT_SOURCE_DIR}/${CMAKE_MATCH_1} included)
        if(included)
          set(known ON)
        endif()
      endif()
    endforeach()
    set_property(GLOBAL PROPERTY adder_includes_torch_${file} ${known})
  endif()
  set(${result} ${known} PARENT_SCOPE)
endfunction()

# The precompiled header for the sources of a target of this folder that need it. Others take up to three
# times as long with it, as templates that it leaves pending are instantiated in each source.
function(adder_precompile target)
  target_precompile_headers(${target} REUSE_FROM adder_pch)
  get_target_property(sources ${target} SOURCES)
  foreach(source IN LISTS sources)
    cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
    adder_includes_torch(${source} needed)
    if(NOT needed)
      set_source_files_properties(${source} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
    endif()
  endforeach()
endfunction()
message(STATUS "LibTorch: ${ADDER_TORCH_VERSION} in ${torch_folder}")
