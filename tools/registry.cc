#include "registry.h"

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <zbccl/zbccl.hpp>

namespace zbccl::tools {

std::string registry_text() {
  size_t size = 0;
  check(zbcclGetEnvironment(nullptr, &size));
  std::string text(size, '\0');
  check(zbcclGetEnvironment(text.data(), &size));
  text.resize(size > 0 ? size - 1 : 0);
  return text;
}

Setting setting(const std::string& name) {
  for (const auto& variable : nlohmann::json::parse(registry_text())) {
    if (variable.at("name").get<std::string>() != name) continue;
    return {variable.at("value").get<std::string>(), variable.at("set").get<bool>()};
  }
  throw std::runtime_error(name + " is no variable of the library that is loaded");
}

}  // namespace zbccl::tools
