/* The one place where the version is written; CMake reads it from here. */
#ifndef ZBCCL_VERSION_H_
#define ZBCCL_VERSION_H_

#define ZBCCL_MAJOR 0
#define ZBCCL_MINOR 1
#define ZBCCL_PATCH 0
#define ZBCCL_VERSION(major, minor, patch) ((major)*10000 + (minor)*100 + (patch))
#define ZBCCL_VERSION_CODE ZBCCL_VERSION(ZBCCL_MAJOR, ZBCCL_MINOR, ZBCCL_PATCH)

#endif /* ZBCCL_VERSION_H_ */
