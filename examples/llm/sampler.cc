#include "sampler.h"

#include <cmath>
#include <limits>

namespace llm {
namespace {

// SplitMix64's output function on a counter.
uint64_t scramble(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
  value = (value ^ value >> 27) * 0x94d049bb133111ebu;
  return value ^ value >> 31;
}

// Adding Gumbel noise and taking the largest draws from the softmax, and keeps a margin that says
// how firm the choice is.
double gumbel(uint64_t seed, uint64_t position, uint64_t index) {
  const uint64_t bits = scramble(scramble(scramble(seed) ^ position) ^ index);
  const double uniform = (static_cast<double>(bits >> 11) + 0.5) * 0x1p-53;
  return -std::log(-std::log(uniform));
}

}  // namespace

Choice Sampler::choose(std::span<const float> logits, uint64_t position) const {
  double best = -std::numeric_limits<double>::infinity();
  double second = best;
  Choice choice;
  for (size_t i = 0; i < logits.size(); ++i) {
    double score = logits[i];
    if (temperature_ > 0) score += temperature_ * gumbel(seed_, position, i);
    if (score > best) {
      second = best;
      best = score;
      choice.token = static_cast<Token>(i);
    } else if (score > second) {
      second = score;
    }
  }
  choice.margin = static_cast<float>(best - second);
  return choice;
}

}  // namespace llm
