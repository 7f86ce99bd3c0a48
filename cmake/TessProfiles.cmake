# The texts of share/devices and share/networks as C, so that the program knows them from any folder.
# Run: cmake -DROOT=<repository> -DOUT=<file.c> -P TessProfiles.cmake
set(body "#include \"shard/profile_texts.h\"\n\n")
set(table "")
foreach(folder devices networks)
    file(GLOB files "${ROOT}/share/${folder}/*.json")
    list(SORT files)
    foreach(file IN LISTS files)
        get_filename_component(name "${file}" NAME_WE)
        string(MAKE_C_IDENTIFIER "${folder}_${name}" id)
        file(READ "${file}" hex HEX)
        string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
        string(APPEND body "static const unsigned char ${id}[] = {${bytes}0};\n")
        string(APPEND table
            "    {\"${folder}\", \"${name}\", (const char *)${id}, sizeof ${id} - 1},\n")
    endforeach()
endforeach()
file(WRITE "${OUT}" "${body}\nconst tess_profile_text tess_profile_texts[] = {\n${table}};\n"
    "const int tess_profile_text_numel = sizeof tess_profile_texts / sizeof *tess_profile_texts;\n")
