# Foreign libraries, one interface target each; which floor may use which stands in docs/architecture.md.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(MPI REQUIRED COMPONENTS C)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(PNG REQUIRED)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(YAML REQUIRED IMPORTED_TARGET yaml-0.1)
pkg_check_modules(CMOCKA IMPORTED_TARGET cmocka)

# The serial, thread-safe flavour, linked statically: the shared one drags in an S3 client.
pkg_check_modules(HDF5 REQUIRED hdf5-serial)
find_library(TESS_HDF5_ARCHIVE NAMES libhdf5_serial.a REQUIRED)
add_library(tess_hdf5 INTERFACE)
target_include_directories(tess_hdf5 SYSTEM INTERFACE ${HDF5_INCLUDE_DIRS})
target_compile_definitions(tess_hdf5 INTERFACE H5_USE_110_API)
target_link_libraries(tess_hdf5 INTERFACE "${TESS_HDF5_ARCHIVE}" z sz aec m dl)
