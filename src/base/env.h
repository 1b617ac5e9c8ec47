// The one registry of ZBCCL_* variables. `zbccl env` and docs/environment.md are generated from it.
// Any thread.
//
// A variable is read when it is asked for; callers on a hot path keep the value. A value out of
// range or not of the type is reported once with a warning and replaced by the default.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace zbccl::env {

enum class Type { kString, kInteger, kBool, kChoice, kSize, kDuration };

struct Variable {
  const char* name;
  Type type;
  const char* default_value;
  const char* range;  // "0..1048576", "a|b|c" for a choice (in any case), "" for none
  const char* text;   // one sentence for people
};

std::span<const Variable> variables();
const char* type_name(Type type);

// `name` must be in the registry.
std::string get_string(const char* name);
int64_t get_integer(const char* name);  // kInteger, kSize (bytes; K, M, G suffixes), kDuration (ms;
                                        // "10s", "5m", "250ms")
bool get_bool(const char* name);        // 0/1, true/false, yes/no, on/off
bool is_set(const char* name);
// What is wrong with the value that the environment gives, or "" where it is unset or valid.
std::string complaint(const char* name);

// Warns once in a process about every ZBCCL_* variable that the registry does not know, with the
// nearest real name.
void warn_unknown();
// The registered name nearest to `name` by edit distance.
std::string nearest(std::string_view name);

// The registry as a JSON array of {name, type, default, range, text, value, set}. `zbccl env` makes
// its table and the docs page of it.
std::string to_json();

}  // namespace zbccl::env
