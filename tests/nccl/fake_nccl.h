// What the fake of NVIDIA's library answers.
#pragma once

inline constexpr int kFakeVersion = 12345;

struct FakeDevComm {
  int version;
  int rank;
  int nranks;
};
