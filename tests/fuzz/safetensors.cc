// The example's weights file: the safetensors reader, the model's dimensions in its metadata, and
// the cutting of the tensors for one of two ranks.
#include "safetensors.h"

#include "config.h"
#include "error.h"
#include "fuzz.h"
#include "shard.h"
#include "weights.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span file(reinterpret_cast<const std::byte*>(data), size);
  try {
    const llm::Archive archive = llm::parse_safetensors(file);
    size_t covered = 0;
    for (const auto& [name, tensor] : archive.tensors) {
      zbccl::fuzz::require(tensor.data.empty() || (tensor.data.data() >= file.data() &&
                                                   tensor.data.data() + tensor.data.size() <=
                                                       file.data() + file.size()),
                           "a tensor lies within the file");
      covered += tensor.data.size();
    }
    zbccl::fuzz::require(covered <= file.size(), "tensors do not overlap");
    const llm::Config config = llm::parse_config(archive.metadata);
    (void)llm::load_weights(archive, config, llm::make_shard(config, 2, 1));
  } catch (const llm::Error&) {
    // What every bad file must end with.
  }
  return 0;
}
