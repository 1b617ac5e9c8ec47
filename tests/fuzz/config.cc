// The model's dimensions as text: a line for each, its name and value with a '=' between.
#include "config.h"

#include "error.h"
#include "fuzz.h"
#include "shard.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  zbccl::fuzz::Input input(data, size);
  std::map<std::string, std::string> metadata;
  while (!input.done()) {
    const std::string_view line = input.line();
    const size_t equals = line.find('=');
    if (equals == std::string_view::npos) continue;
    metadata[std::string(line.substr(0, equals))] = std::string(line.substr(equals + 1));
  }
  try {
    const llm::Config config = llm::parse_config(metadata);
    zbccl::fuzz::require(config.heads % config.kv_heads == 0, "heads share evenly");
    zbccl::fuzz::require(config.rope_base >= 1 && config.norm_eps > 0, "numbers are in range");
    for (int rank = 0; rank < 3; ++rank) {
      const llm::Shard shard = llm::make_shard(config, 3, rank);
      zbccl::fuzz::require(shard.heads.size() > 0 && shard.hidden.size() > 0,
                           "every rank has a part");
    }
  } catch (const llm::Error&) {
  }
  return 0;
}
