# Language, warnings and sanitizers; every target links tess_flags.
set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

# Warnings are errors with the compilers that are quiet; what another one says more stops nobody's build.
set(tess_is_quiet OFF)
if(CMAKE_C_COMPILER_VERSION MATCHES "^[0-9]+")
    if((CMAKE_C_COMPILER_ID STREQUAL GNU AND CMAKE_MATCH_0 MATCHES "^1[234]$")
        OR (CMAKE_C_COMPILER_ID STREQUAL Clang AND CMAKE_MATCH_0 EQUAL 14))
        set(tess_is_quiet ON)
    endif()
endif()
option(TESS_WERROR "a warning ends the build" ${tess_is_quiet})

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
