/* For LD_AUDIT: gives the process zbccl's library wherever it asks the loader for libnccl.so.2.
 * Unlike a preloaded library it is not loaded into programs that have no use for NCCL. It lies in
 * one folder with libzbccl_nccl.so. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

static const char kOurs[] = "libzbccl_nccl.so";
static char replacement[4096];
static char marker; /* its address is the cookie of zbccl's library */

static const char* base_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash != NULL ? slash + 1 : path;
}

static int is_nccl(const char* path) {
  const char* name = base_name(path);
  return strcmp(name, "libnccl.so.2") == 0 || strcmp(name, "libnccl.so") == 0;
}

EXPORT unsigned int la_version(unsigned int version) {
  Dl_info info;
  if (dladdr(replacement, &info) != 0 && info.dli_fname != NULL) {
    const int folder = (int)(base_name(info.dli_fname) - info.dli_fname);
    const int length =
        snprintf(replacement, sizeof replacement, "%.*s%s", folder, info.dli_fname, kOurs);
    if (length < 0 || (size_t)length >= sizeof replacement) replacement[0] = '\0';
  }
  return version < LAV_CURRENT ? version : LAV_CURRENT;
}

EXPORT unsigned int la_objopen(struct link_map* map, Lmid_t space, uintptr_t* cookie) {
  (void)space;
  if (map->l_name != NULL && strcmp(base_name(map->l_name), kOurs) == 0) {
    *cookie = (uintptr_t)&marker;
  }
  return 0;
}

/* What zbccl's library itself asks for is the real one. */
EXPORT char* la_objsearch(const char* name, uintptr_t* cookie, unsigned int flag) {
  if (flag != LA_SER_ORIG || replacement[0] == '\0' || !is_nccl(name) ||
      *cookie == (uintptr_t)&marker) {
    return (char*)name;
  }
  return replacement;
}
