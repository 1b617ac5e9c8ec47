// The pure parts: frames, handshake messages, proofs, unique ids and the entries of a join.
#include <random>

#include "bootstrap/join_entry.h"
#include "bootstrap_support.h"

namespace zbccl::bootstrap::test {
namespace {

std::string_view body_of(const std::string& frame) {
  return std::string_view(frame).substr(kFrameHeaderBytes);
}

Result<Request> parse_whole(std::string_view frame) {
  ZBCCL_ASSIGN_OR_RETURN(const FrameHeader header,
                         parse_frame_header(frame.substr(0, kFrameHeaderBytes)));
  return parse_request(header.type, frame.substr(kFrameHeaderBytes));
}

TEST(Frame, RequestsComeBackAsTheyWere) {
  const auto set = parse_whole(set_frame("key", std::string("v\0w", 3)));
  ASSERT_TRUE(set.ok());
  EXPECT_EQ(set->keys, std::vector<std::string>{"key"});
  EXPECT_EQ(set->value, std::string("v\0w", 3));

  const std::vector<std::string> keys{"a", "bc", std::string(kMaxKeyBytes, 'k')};
  const auto get = parse_whole(get_frame(keys.data(), keys.size(), Milliseconds(1234)));
  ASSERT_TRUE(get.ok());
  EXPECT_EQ(get->keys, keys);
  EXPECT_EQ(get->patience, Milliseconds(1234));

  const auto add = parse_whole(add_frame("n", -7));
  ASSERT_TRUE(add.ok());
  EXPECT_EQ(add->amount, -7);
}

TEST(Frame, AttendAndLeaveComeBackAsTheyWere) {
  const auto read = [](const std::string& frame) {
    const auto header = parse_frame_header(std::string_view(frame).substr(0, kFrameHeaderBytes));
    EXPECT_TRUE(header.ok());
    const auto request =
        parse_request(header->type, std::string_view(frame).substr(kFrameHeaderBytes));
    EXPECT_TRUE(request.ok()) << request.status().to_string();
    return *request;
  };
  const Request attend = read(attend_frame("job", -1, 64, ~uint64_t{0}));
  EXPECT_EQ(attend.type, FrameType::kAttend);
  EXPECT_EQ(attend.keys, std::vector<std::string>{"job"});
  EXPECT_EQ(attend.rank, -1);
  EXPECT_EQ(attend.nranks, 64);
  EXPECT_EQ(attend.process, ~uint64_t{0});
  const Request leave = read(leave_frame("job", 3, {}));
  EXPECT_EQ(leave.rank, 3);
  EXPECT_TRUE(leave.outcome.ok());
  const Request failed = read(leave_frame("job", 3, error(Code::kTimeout, "too late")));
  EXPECT_EQ(failed.outcome.code(), Code::kTimeout);
  EXPECT_EQ(failed.outcome.message(), "too late");
  EXPECT_EQ(*parse_host(std::string_view(host_frame(7)).substr(kFrameHeaderBytes)), 7);
  EXPECT_FALSE(parse_host("abc").ok());
  EXPECT_FALSE(parse_request(FrameType::kHost, "\1\0\0\0").ok());
}

TEST(Frame, RepliesComeBackAsTheyWere) {
  EXPECT_EQ(*parse_sum(body_of(sum_frame(-99))), -99);
  const Status refused = parse_refused(body_of(refused_frame(error(Code::kInvalidUsage, "no"))));
  EXPECT_EQ(refused.code(), Code::kInvalidUsage);
  EXPECT_EQ(refused.message(), "no");
  EXPECT_FALSE(parse_refused("").ok());
  EXPECT_FALSE(parse_refused(std::string(4, '\0')).ok());
  EXPECT_FALSE(parse_sum("1234567").ok());
  EXPECT_FALSE(parse_sum("123456789").ok());
}

TEST(Frame, HeaderIsChecked) {
  const std::string good = frame_header(FrameType::kSet, kMaxFrameBody);
  ASSERT_TRUE(parse_frame_header(good).ok());
  EXPECT_EQ(parse_frame_header(good)->length, kMaxFrameBody);
  EXPECT_FALSE(parse_frame_header(frame_header(FrameType::kSet, kMaxFrameBody + 1)).ok());
  EXPECT_FALSE(parse_frame_header(good.substr(1)).ok());
  EXPECT_FALSE(parse_frame_header(good + "x").ok());

  std::string other_version = good;
  other_version[0] = 2;
  EXPECT_EQ(parse_frame_header(other_version).status().code(), Code::kVersionMismatch);
  std::string unknown = good;
  unknown[2] = 99;
  EXPECT_FALSE(parse_frame_header(unknown).ok());
  std::string reserved = good;
  reserved[3] = 1;
  EXPECT_FALSE(parse_frame_header(reserved).ok());
}

TEST(Frame, EveryTruncationIsRefused) {
  const std::vector<std::string> keys{"first", "second"};
  for (const std::string& frame :
       {get_frame(keys.data(), keys.size(), Milliseconds(5)), add_frame("key", 3)}) {
    const auto header = parse_frame_header(std::string_view(frame).substr(0, kFrameHeaderBytes));
    ASSERT_TRUE(header.ok());
    for (size_t size = 0; size < body_of(frame).size(); ++size) {
      EXPECT_FALSE(parse_request(header->type, body_of(frame).substr(0, size)).ok()) << size;
    }
    EXPECT_FALSE(parse_request(header->type, std::string(body_of(frame)) + "x").ok());
  }
  // A set's value has no length of its own: only its key can be cut.
  for (size_t size = 0; size < 5; ++size) {
    EXPECT_FALSE(
        parse_request(FrameType::kSet, body_of(set_frame("key", "v")).substr(0, size)).ok());
  }
}

TEST(Frame, AnnouncedCountsAreNotBelieved) {
  std::string body(8, '\0');
  body.replace(4, 4, "\xff\xff\xff\xff");
  EXPECT_FALSE(parse_request(FrameType::kGet, body).ok());
  EXPECT_FALSE(parse_request(FrameType::kSet, std::string("\x00\x00v", 3)).ok());
  EXPECT_FALSE(parse_request(FrameType::kSum, "12345678").ok());
}

TEST(Frame, RandomBytesNeverCrash) {
  std::mt19937 random(7);
  const std::vector<std::string> keys{"alpha", "beta"};
  for (int round = 0; round < 20000; ++round) {
    std::string bytes =
        round % 2 == 0 ? get_frame(keys.data(), 2, Milliseconds(9)) : set_frame("k", "some value");
    for (int flips = 0; flips < 1 + round % 4; ++flips) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    bytes.resize(kFrameHeaderBytes + random() % (bytes.size() - kFrameHeaderBytes + 1));
    (void)parse_whole(bytes);
    (void)parse_entry(bytes);
    (void)parse_refused(bytes);
    (void)UniqueId::parse(bytes);
  }
}

TEST(Handshake, MessagesComeBack) {
  EXPECT_TRUE(check_preamble(preamble()).ok());
  EXPECT_EQ(preamble().size(), kPreambleBytes);
  std::string other = preamble();
  other[8] = 9;
  EXPECT_EQ(check_preamble(other).code(), Code::kVersionMismatch);
  EXPECT_EQ(check_preamble("GET / HTTP/1").code(), Code::kInvalidUsage);
  EXPECT_EQ(check_preamble("").code(), Code::kInvalidUsage);

  Hello hello;
  hello.secret_id = 0x0123456789abcdef;
  hello.nonce = *make_nonce();
  const std::string bytes = encode_hello(hello);
  ASSERT_EQ(bytes.size(), kHelloBytes);
  EXPECT_EQ(parse_hello(bytes).secret_id, hello.secret_id);
  EXPECT_EQ(parse_hello(bytes).nonce, hello.nonce);
}

TEST(Auth, IsHmacSha256) {
  // RFC 4231, case 1; its key of 20 bytes equals itself with zeros behind.
  Secret key{};
  for (size_t i = 0; i < 20; ++i) key[i] = 0x0b;
  const auto digest = hmac(key, "Hi There");
  ASSERT_TRUE(digest.ok());
  EXPECT_EQ(to_hex(*digest), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
}

TEST(Auth, ProofsDependOnEverything) {
  const Nonce a = *make_nonce();
  const Nonce b = *make_nonce();
  EXPECT_NE(a, b);
  const Proof proof = *make_proof(some_secret(), Role::kClient, a, b);
  EXPECT_TRUE(proofs_equal(proof, *make_proof(some_secret(), Role::kClient, a, b)));
  EXPECT_FALSE(proofs_equal(proof, *make_proof(some_secret(), Role::kServer, a, b)));
  EXPECT_FALSE(proofs_equal(proof, *make_proof(some_secret(), Role::kClient, b, a)));
  EXPECT_FALSE(proofs_equal(proof, *make_proof(some_secret(2), Role::kClient, a, b)));
  EXPECT_NE(*secret_id(some_secret()), *secret_id(some_secret(2)));
}

TEST(UniqueIdText, ComesBack) {
  for (const char* host : {"10.0.0.1", "::1", "fe80::1234"}) {
    const UniqueId id{host, 65535, some_secret()};
    const auto parsed = UniqueId::parse(id.to_string());
    ASSERT_TRUE(parsed.ok()) << parsed.status().to_string();
    EXPECT_EQ(parsed->host, host);
    EXPECT_EQ(parsed->port, 65535);
    EXPECT_EQ(parsed->secret, id.secret);
  }
}

// Where a text of C would end, this one does not.
TEST(UniqueIdText, ZeroByteInTheAddressIsRefused) {
  const std::string text = std::string("127.0.0.1\0x", 11) + ":80/" + to_hex(some_secret());
  EXPECT_FALSE(UniqueId::parse(text).ok());
}

TEST(UniqueIdText, MalformedIsRefusedWithoutRepeatingIt) {
  const std::string hex = to_hex(some_secret());
  for (const std::string& text :
       {std::string(), hex, "10.0.0.1/" + hex, "10.0.0.1:0/" + hex, "10.0.0.1:65536/" + hex,
        "10.0.0.1:1x/" + hex, "host:1/" + hex, "::1:80/" + hex, "[::1:80/" + hex, ":1/" + hex,
        "10.0.0.1:1/" + hex + "0", "10.0.0.1:1/" + hex.substr(1),
        "10.0.0.1:1/" + hex.substr(1) + "g", "10.0.0.1:-1/" + hex}) {
    const auto parsed = UniqueId::parse(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.status().code(), Code::kInvalidUsage);
    EXPECT_EQ(parsed.status().message().find(hex.substr(8, 16)), std::string::npos);
  }
}

TEST(JoinEntry, ComesBack) {
  JoinEntry entry;
  entry.library_version = 100;
  entry.rank = 3;
  entry.nranks = 5;
  entry.hello = std::string("\0hello", 6);
  const auto parsed = parse_entry(encode_entry(entry));
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->rank, 3);
  EXPECT_EQ(parsed->nranks, 5);
  EXPECT_EQ(parsed->library_version, 100U);
  EXPECT_EQ(parsed->hello, entry.hello);
  EXPECT_FALSE(parse_entry("abc").ok());
  EXPECT_FALSE(parse_entry(encode_entry(entry).substr(0, 15)).ok());
}

TEST(JoinEntry, OutcomesComeBack) {
  EXPECT_TRUE(parse_outcome(encode_outcome({})).ok());
  const Status failed = parse_outcome(encode_outcome(error(Code::kTimeout, "rank 3 never came")));
  EXPECT_EQ(failed.code(), Code::kTimeout);
  EXPECT_EQ(failed.message(), "rank 3 never came");
  for (const char* text : {"", "0 x", "99 x", "-1 x", "6", "six x"}) {
    EXPECT_EQ(parse_outcome(text).code(), Code::kVersionMismatch) << text;
  }
}

TEST(JoinEntry, RankLists) {
  EXPECT_EQ(rank_list(std::vector<int>{3}), "rank 3");
  EXPECT_EQ(rank_list(std::vector<int>{3, 4}), "ranks 3 and 4");
  EXPECT_EQ(rank_list(std::vector<int>{3, 4, 9}), "ranks 3, 4 and 9");
  std::vector<int> many(40);
  for (int i = 0; i < 40; ++i) many[static_cast<size_t>(i)] = i;
  EXPECT_NE(rank_list(many).find("(40 in all)"), std::string::npos);
}

}  // namespace
}  // namespace zbccl::bootstrap::test
