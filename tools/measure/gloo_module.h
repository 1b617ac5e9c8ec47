// gloo lives in a module of its own, loaded at run time, so that the command works without it.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace zbccl::tools {

// The ranks that are to meet in another library.
struct CompareGroup {
  int rank = 0;
  int ranks = 1;
  // Collective: every rank's text, by rank.
  std::function<std::vector<std::string>(const std::string&)> exchange;
};

// What the module exports under that name. Throws UsageError where the command was built without
// gloo or gloo is not installed. The module is never closed: gloo's threads and statics live as
// long as the process.
void* gloo_symbol(const char* name);

}  // namespace zbccl::tools
