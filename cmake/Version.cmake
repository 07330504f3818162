# project(VERSION) decides; the header that programs read must say the same.
set(version_header ${PROJECT_SOURCE_DIR}/adder/core/version.h)
file(READ ${version_header} text)
foreach(line IN ITEMS
    "#define ADDER_VERSION_MAJOR ${PROJECT_VERSION_MAJOR}\n"
    "#define ADDER_VERSION_MINOR ${PROJECT_VERSION_MINOR}\n"
    "#define ADDER_VERSION_PATCH ${PROJECT_VERSION_PATCH}\n"
    "kVersion = \"${PROJECT_VERSION}\";\n")
  string(FIND "${text}" "${line}" found)
  if(found EQUAL -1)
    message(FATAL_ERROR "${version_header} must have the version of CMakeLists.txt, ${PROJECT_VERSION}; missing: ${line}")
  endif()
endforeach()
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${version_header})
