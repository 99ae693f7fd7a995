/* The TLS extension's C side. The interface itself, and its conventions: tls_api.h. */

#ifndef PAGEFERRY_TLS_H
#define PAGEFERRY_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tls_api.h"

#endif
