# Language, warnings and sanitizers; every target links tess_flags.
set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

# Warnings are errors with the compilers that were tried; what a newer one says more stops nobody's build.
set(tess_is_tried OFF)
if((CMAKE_C_COMPILER_ID STREQUAL GNU AND CMAKE_C_COMPILER_VERSION VERSION_LESS 15)
    OR (CMAKE_C_COMPILER_ID STREQUAL Clang AND CMAKE_C_COMPILER_VERSION VERSION_LESS 15))
    set(tess_is_tried ON)
endif()
option(TESS_WERROR "a warning ends the build" ${tess_is_tried})

add_library(tess_flags INTERFACE)
target_compile_options(tess_flags INTERFACE
    -Wall -Wextra -Wconversion -Wsign-conversion -Wswitch-enum -Wshadow -Wmissing-prototypes
    $<$<BOOL:${TESS_WERROR}>:-Werror>
    -fvisibility=hidden -ffp-contract=off -fno-math-errno "-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=")
target_compile_definitions(tess_flags INTERFACE _GNU_SOURCE $<$<BOOL:${TESS_CHECKED}>:TESS_CHECKED>)
target_include_directories(tess_flags INTERFACE "${CMAKE_SOURCE_DIR}/src" "${CMAKE_SOURCE_DIR}")
if(TESS_SANITIZE)
    # -Wrestrict mistakes members of one struct for each other behind the checks; the release build has it
    target_compile_options(tess_flags INTERFACE -fsanitize=${TESS_SANITIZE} -fno-omit-frame-pointer
        -Wno-conversion $<$<C_COMPILER_ID:GNU>:-Wno-restrict>)
    target_link_options(tess_flags INTERFACE -fsanitize=${TESS_SANITIZE})
endif()
