// How a function of the interface is defined: under both of its names.
#pragma once

#include "functions.h"

#define ZBCCL_NCCL_EXPORT __attribute__((visibility("default")))
#define ZBCCL_NCCL_DEFINE(result, name, parameters)                                      \
  extern "C" ZBCCL_NCCL_EXPORT result name parameters __attribute__((alias("p" #name))); \
  extern "C" ZBCCL_NCCL_EXPORT result p##name parameters
