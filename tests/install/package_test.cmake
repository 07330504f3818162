# The way of a project that uses an installed Adder: install, find_package, build and run the example, and what is said
# where something is missing.
cmake_minimum_required(VERSION 3.25)
file(REMOVE_RECURSE ${ADDER_WORK}/staged ${ADDER_WORK}/prefix ${ADDER_WORK}/example ${ADDER_WORK}/refused)
set(prefix ${ADDER_WORK}/prefix)

# run(<name> <pattern> <command>...): the command ends well and prints what matches. refuse(...): it fails and says so.
function(expect_result name pattern succeeds)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  string(REGEX REPLACE "[ \n]+" " " flat "${output}") # CMake breaks its messages into lines
  set(succeeded FALSE)
  if(result EQUAL 0)
    set(succeeded TRUE)
  endif()
  if(succeeded STREQUAL succeeds AND flat MATCHES "${pattern}")
    message("${name}: ok")
  else()
    message(FATAL_ERROR "${name}: exit ${result}, must match '${pattern}':\n${output}")
  endif()
endfunction()
macro(run name pattern)
  expect_result("${name}" "${pattern}" TRUE ${ARGN})
endmacro()
macro(refuse name pattern)
  expect_result("${name}" "${pattern}" FALSE ${ARGN})
endmacro()

# Installed, and moved: nothing in it may depend on where it was installed.
run("install" "AdderConfig.cmake" ${CMAKE_COMMAND} --install ${ADDER_BUILD} --prefix ${ADDER_WORK}/staged)
file(RENAME ${ADDER_WORK}/staged ${prefix})
file(GLOB_RECURSE installed RELATIVE ${prefix} ${prefix}/*)
foreach(file IN LISTS installed)
  if(file MATCHES "\\.(a|cuh|cpp|cu)$|-inl\\.h$|_schema\\.h$|_call\\.h$|include/adder/kernels/")
    message(FATAL_ERROR "install: ${file} is no user's business")
  endif()
endforeach()
if(ADDER_PROGRAM)
  run("program" "^${ADDER_VERSION} $" ${prefix}/bin/adder --version)
  run("program finds its libraries" "libadder.so => ${prefix}/[^ ]*/libadder.so" ldd ${prefix}/bin/adder)
endif()

# The example.
set(generator -G Ninja -DCMAKE_PREFIX_PATH=${prefix} -DCMAKE_CXX_COMPILER=${ADDER_COMPILER})
run("configure example" "Build files have been written" ${CMAKE_COMMAND} -S ${ADDER_SOURCE}/examples/cpp
  -B ${ADDER_WORK}/example ${generator} ${ADDER_USE_CCACHE})
run("build example" "" ${CMAKE_COMMAND} --build ${ADDER_WORK}/example)
run("run example" "Adder ${ADDER_VERSION}, .*saved and loaded: .*In the forests of the night" ${ADDER_WORK}/example/adder_example
  ${ADDER_SOURCE}/examples/cpp/tyger.txt ${ADDER_WORK}/example/model)
refuse("example without its text" "adder_example: .*/nowhere.txt" ${ADDER_WORK}/example/adder_example /nowhere.txt)

# What is said where it cannot be found.
file(WRITE ${ADDER_WORK}/refused/CMakeLists.txt
  "cmake_minimum_required(VERSION 3.25)\nproject(refused NONE)\nfind_package(Adder \${wanted} REQUIRED)\n")
function(refuse_package name pattern)
  file(REMOVE_RECURSE ${ADDER_WORK}/refused/build)
  refuse("${name}" "${pattern}" ${CMAKE_COMMAND} -S ${ADDER_WORK}/refused -B ${ADDER_WORK}/refused/build ${generator} ${ARGN})
endfunction()
foreach(version IN ITEMS 0.2 1.0 0.1.99)
  refuse_package("version ${version}" "requested version \"${version}\".*AdderConfig.cmake, version: ${ADDER_VERSION}"
    -Dwanted=${version})
endforeach()
refuse_package("no LibTorch" "Adder needs LibTorch [0-9.]+, and found none in '/nowhere'. Give -DADDER_TORCH=<folder"
  -DADDER_TORCH=/nowhere)
set(other ${ADDER_WORK}/refused/torch)
file(WRITE ${other}/lib/libtorch_cpu.so "")
file(WRITE ${other}/include/torch/headeronly/version.h
  "#define TORCH_VERSION_MAJOR 1\n#define TORCH_VERSION_MINOR 2\n#define TORCH_VERSION_PATCH 3\n")
refuse_package("another LibTorch" "Adder was built for LibTorch [0-9.]+, and found 1.2.3 in '${other}'"
  -DADDER_TORCH=${other})
