#include "format/tokenizer_priv.h"

/* [Note: byte level] GPT-2's bytes_to_unicode: printable Latin-1 maps to itself, the other 68
 * bytes in ascending order to U+0100, U+0101, ... */
static bool maps_to_itself(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

int tess_byte_of_char(uint32_t code_point)
{
    if (code_point < 0x100)
        return maps_to_itself(code_point) ? (int)code_point : -1;
    const uint32_t n = code_point - 0x100;
    if (n < 0x21)
        return (int)n;
    if (n < 0x21 + 0x22)
        return (int)(0x7f + (n - 0x21));
    return n == 0x21 + 0x22 ? 0xad : -1;
}
