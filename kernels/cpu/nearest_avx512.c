#include "kernels/cpu/nearest_body_priv.h"
