#include "gateway/identity/key_ring.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <sys/file.h>
#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>
#include <utility>

#include "gateway/identity/file_stamp.h"

namespace weir::gateway {
namespace {

constexpr std::string_view kPrefix = "weir_";
constexpr size_t kIdDigits = 8;
constexpr size_t kSecretBytes = 32;

using Digest = std::array<uint8_t, 32>;

Digest HmacSha256(std::string_view key, std::string_view text) {
  Digest digest{};
  unsigned int size = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), reinterpret_cast<const unsigned char*>(text.data()),
       text.size(), digest.data(), &size);
  return digest;
}

std::string Hex(const void* bytes, size_t size) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (size_t i = 0; i < size; ++i) {
    const uint8_t byte = static_cast<const uint8_t*>(bytes)[i];
    hex.push_back(kDigits[byte >> 4]);
    hex.push_back(kDigits[byte & 15]);
  }
  return hex;
}

std::optional<std::string> FromHex(std::string_view hex, size_t size) {
  if (hex.size() != 2 * size) return std::nullopt;
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
    const int high = digit(hex[i]), low = digit(hex[i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(high * 16 + low));
  }
  return bytes;
}

std::string RandomBytes(size_t size) {
  std::string bytes(size, '\0');
  // The system's generator does not fail once it has been seeded; without it no key may be made.
  if (RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(size)) != 1) std::abort();
  return bytes;
}

std::string Base64Url(std::string_view bytes) {
  std::string text(4 * ((bytes.size() + 2) / 3) + 1, '\0');
  const int size =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()),
                      reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  text.resize(static_cast<size_t>(size));
  while (text.ends_with('=')) text.pop_back();
  std::replace(text.begin(), text.end(), '+', '-');
  std::replace(text.begin(), text.end(), '/', '_');
  return text;
}

absl::Status Bad(std::string_view origin, const std::string& what) {
  return absl::InvalidArgumentError(std::string(origin) + ": " + what);
}

// A scalar of a map, or nothing.
std::optional<std::string> Field(const YAML::Node& node, const char* name) {
  const YAML::Node value = node[name];
  if (!value || !value.IsScalar()) return std::nullopt;
  return value.Scalar();
}

absl::Status CheckFields(const YAML::Node& node, std::initializer_list<std::string_view> known,
                         std::string_view origin) {
  for (const auto& entry : node) {
    const std::string name = entry.first.Scalar();
    if (std::find(known.begin(), known.end(), name) == known.end()) return Bad(origin, "unknown field '" + name + "'");
  }
  return absl::OkStatus();
}

using Weights = std::map<std::string, double, std::less<>>;

absl::StatusOr<Weights> ParseWeights(const YAML::Node& tenants, std::string_view origin) {
  Weights weights;
  for (const auto& entry : tenants) {
    const std::string name = entry.first.Scalar();
    if (const auto path = ParseTenantPath(name); !path.ok()) return Bad(origin, std::string(path.status().message()));
    if (!entry.second.IsMap()) return Bad(origin, "tenants." + name + ": a map like {weight: 2} is expected");
    if (const auto status = CheckFields(entry.second, {"weight"}, origin); !status.ok()) return status;
    double weight = 0;
    try {
      weight = entry.second["weight"].as<double>(1.0);
    } catch (const YAML::Exception&) {
      weight = NAN;
    }
    if (!(weight > 0 && weight <= 1e6)) return Bad(origin, "tenants." + name + ".weight: a number above 0 is expected");
    weights[name] = weight;
  }
  return weights;
}

std::vector<double> WeightsOf(const std::vector<std::string>& path, const Weights& weights) {
  std::vector<double> of_path;
  std::string name;
  for (const std::string& node : path) {
    name += (name.empty() ? "" : "/") + node;
    const auto at = weights.find(name);
    of_path.push_back(at == weights.end() ? 1.0 : at->second);
  }
  return of_path;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
}

// Written beside and renamed, so that a reader never sees half a file.
absl::Status WriteFile(const std::string& path, const std::string& text) {
  const std::string beside = path + ".new";
  const int fd = open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return absl::UnavailableError(beside + ": " + strerror(errno));
  const bool ok = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && fsync(fd) == 0;
  close(fd);
  if (!ok || rename(beside.c_str(), path.c_str()) != 0)
    return absl::UnavailableError(path + ": cannot be written: " + strerror(errno));
  return absl::OkStatus();
}

// One writer at a time, also among processes.
class FileLock {
 public:
  explicit FileLock(const std::string& path) : fd_(open((path + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
    if (fd_ >= 0) flock(fd_, LOCK_EX);
  }
  ~FileLock() {
    if (fd_ >= 0) close(fd_);
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int fd_;
};

// Parses, lets `change` work on the tree, checks the result as a reader would, writes.
template <typename Change>
absl::Status ChangeFile(const std::string& path, bool may_create, const Change& change) {
  const FileLock lock(path);
  YAML::Node root;
  if (access(path.c_str(), F_OK) == 0) {
    const std::string text = ReadFile(path);
    if (const auto ring = KeyRing::Parse(text, path); !ring.ok()) return ring.status();
    root = YAML::Load(text);
  } else if (may_create) {
    root["pepper"] = Hex(RandomBytes(32).data(), 32);
    root["namespace_secret"] = Hex(RandomBytes(32).data(), 32);
    root["keys"] = YAML::Node(YAML::NodeType::Sequence);
  } else {
    return absl::NotFoundError(path + ": no such keys file; `weir keys create` makes one");
  }
  if (const absl::Status status = change(root); !status.ok()) return status;
  const std::string text = YAML::Dump(root) + "\n";
  if (const auto ring = KeyRing::Parse(text, path); !ring.ok()) return ring.status();
  return WriteFile(path, text);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ParseTenantPath(std::string_view path) {
  std::vector<std::string> nodes(1);
  for (const char c : path) {
    if (c == '/') {
      nodes.emplace_back();
    } else {
      nodes.back().push_back(c);
    }
  }
  const auto is_good = [](const std::string& node) {
    return !node.empty() && node.size() <= 64 && std::all_of(node.begin(), node.end(), [](unsigned char c) {
      return isalnum(c) || c == '-' || c == '_' || c == '.';
    });
  };
  if (nodes.size() > 8 || !std::all_of(nodes.begin(), nodes.end(), is_good)) {
    return absl::InvalidArgumentError("tenant '" + std::string(path) +
                                      "': 1 to 8 names of letters, digits, '-', '_', '.' (64 at most), divided by '/'");
  }
  return nodes;
}

absl::StatusOr<Priority> ParsePriority(std::string_view name) {
  for (const Priority priority : {Priority::kInteractive, Priority::kStandard, Priority::kBatch}) {
    if (Name(priority) == name) return priority;
  }
  return absl::InvalidArgumentError("priority '" + std::string(name) + "': interactive, standard or batch is expected");
}

std::string_view Name(Priority priority) {
  switch (priority) {
    case Priority::kInteractive:
      return "interactive";
    case Priority::kStandard:
      return "standard";
    case Priority::kBatch:
      return "batch";
  }
  return "?";
}

absl::StatusOr<std::shared_ptr<const KeyRing>> KeyRing::Parse(std::string_view yaml, std::string_view origin) {
  YAML::Node root;
  try {
    root = YAML::Load(std::string(yaml));
  } catch (const YAML::Exception& error) {
    return Bad(origin, std::string("not YAML: ") + error.what());
  }
  if (!root.IsMap()) return Bad(origin, "a map with pepper, namespace_secret and keys is expected");
  if (const auto status = CheckFields(root, {"pepper", "namespace_secret", "tenants", "keys"}, origin); !status.ok())
    return status;
  const auto pepper = FromHex(Field(root, "pepper").value_or(""), 32);
  const auto secret = FromHex(Field(root, "namespace_secret").value_or(""), 32);
  if (!pepper || !secret)
    return Bad(origin, "pepper and namespace_secret: 64 hexadecimal digits (lower case) are expected");
  const auto weights = ParseWeights(root["tenants"], origin);
  if (!weights.ok()) return weights.status();
  if (root["keys"] && !root["keys"].IsSequence() && !root["keys"].IsNull())
    return Bad(origin, "keys: a list is expected");

  auto ring = std::make_shared<KeyRing>();
  ring->pepper_ = *pepper;
  for (const YAML::Node& node : root["keys"]) {
    const std::string at = "keys[" + std::to_string(ring->entries_.size()) + "]";
    if (!node.IsMap()) return Bad(origin, at + ": a map is expected");
    if (const auto status =
            CheckFields(node, {"id", "hash", "tenant", "highest_priority", "max_concurrent_requests"}, origin);
        !status.ok()) {
      return status;
    }
    Entry entry;
    entry.identity.key_id = Field(node, "id").value_or("");
    if (!FromHex(entry.identity.key_id, kIdDigits / 2))
      return Bad(origin, at + ".id: 8 hexadecimal digits are expected");
    const auto hash = FromHex(Field(node, "hash").value_or(""), 32);
    if (!hash) return Bad(origin, at + ".hash: 64 hexadecimal digits are expected");
    std::copy(hash->begin(), hash->end(), reinterpret_cast<char*>(entry.hash.data()));
    const auto path = ParseTenantPath(Field(node, "tenant").value_or(""));
    if (!path.ok()) return Bad(origin, at + ".tenant: " + std::string(path.status().message()));
    entry.identity.tenant_path = *path;
    entry.identity.tenant_weights = WeightsOf(*path, *weights);
    const auto priority = ParsePriority(Field(node, "highest_priority").value_or("interactive"));
    if (!priority.ok()) return Bad(origin, at + ".highest_priority: " + std::string(priority.status().message()));
    entry.identity.highest_priority = *priority;
    try {
      entry.identity.max_concurrent_requests = node["max_concurrent_requests"].as<int32_t>(0);
    } catch (const YAML::Exception&) {
      entry.identity.max_concurrent_requests = -1;
    }
    if (entry.identity.max_concurrent_requests < 0)
      return Bad(origin, at + ".max_concurrent_requests: a count is expected");
    const Digest name_space = HmacSha256(*secret, entry.identity.TenantName());
    std::copy_n(name_space.begin(), entry.identity.cache_namespace_key.size(),
                entry.identity.cache_namespace_key.begin());
    const std::string id = entry.identity.key_id;
    if (!ring->entries_.emplace(id, std::move(entry)).second) return Bad(origin, at + ".id: " + id + " is there twice");
  }
  return std::shared_ptr<const KeyRing>(std::move(ring));
}

absl::StatusOr<Identity> KeyRing::Authenticate(std::string_view key) const {
  static const absl::Status kRefused = absl::UnauthenticatedError(
      "missing or unknown API key; send metadata 'authorization: Bearer weir_...' (keys are made by `weir keys "
      "create`)");
  const size_t secret_at = kPrefix.size() + kIdDigits + 1;
  if (!key.starts_with(kPrefix) || key.size() <= secret_at || key.size() > 256 || key[secret_at - 1] != '_')
    return kRefused;
  const auto at = entries_.find(key.substr(kPrefix.size(), kIdDigits));
  const Digest digest = HmacSha256(pepper_, key);
  // An unknown id costs what a known one costs.
  const Digest& expected = at == entries_.end() ? digest : at->second.hash;
  const bool is_equal = CRYPTO_memcmp(digest.data(), expected.data(), digest.size()) == 0;
  if (!is_equal || at == entries_.end()) return kRefused;
  return at->second.identity;
}

std::vector<Identity> KeyRing::Identities() const {
  std::vector<Identity> identities;
  identities.reserve(entries_.size());
  for (const auto& [id, entry] : entries_) identities.push_back(entry.identity);
  return identities;
}

absl::StatusOr<std::unique_ptr<KeyFile>> KeyFile::Open(const std::string& path) {
  if (access(path.c_str(), R_OK) != 0) {
    return absl::NotFoundError(path + ": cannot be read: " + strerror(errno) +
                               "; `weir keys create` makes a keys file");
  }
  std::unique_ptr<KeyFile> file(new KeyFile(path));
  if (const absl::Status status = file->Refresh(); !status.ok()) return status;
  return file;
}

std::shared_ptr<const KeyRing> KeyFile::ring() const {
  const std::lock_guard lock(mutex_);
  return ring_;
}

absl::Status KeyFile::Refresh() {
  const std::string stamp = StampOf(path_);
  {
    const std::lock_guard lock(mutex_);
    if (stamp == seen_) return absl::OkStatus();
    seen_ = stamp;
  }
  if (stamp.empty()) return absl::NotFoundError(path_ + ": is gone; the keys read before stay in force");
  auto ring = KeyRing::Parse(ReadFile(path_), path_);
  if (!ring.ok()) return ring.status();
  const std::lock_guard lock(mutex_);
  ring_ = *std::move(ring);
  return absl::OkStatus();
}

absl::StatusOr<std::string> CreateKey(const std::string& path, const NewKey& key) {
  if (const auto tenant = ParseTenantPath(key.tenant); !tenant.ok()) return tenant.status();
  std::string text;
  const absl::Status status = ChangeFile(path, /*may_create=*/true, [&](YAML::Node& root) {
    std::string id;
    do {
      id = Hex(RandomBytes(kIdDigits / 2).data(), kIdDigits / 2);
    } while (std::any_of(root["keys"].begin(), root["keys"].end(),
                         [&](const YAML::Node& node) { return Field(node, "id") == id; }));
    text = std::string(kPrefix) + id + "_" + Base64Url(RandomBytes(kSecretBytes));
    const Digest hash = HmacSha256(*FromHex(root["pepper"].Scalar(), 32), text);
    YAML::Node node;
    node["id"] = id;
    node["hash"] = Hex(hash.data(), hash.size());
    node["tenant"] = key.tenant;
    node["highest_priority"] = std::string(Name(key.highest_priority));
    if (key.max_concurrent_requests > 0) node["max_concurrent_requests"] = key.max_concurrent_requests;
    root["keys"].push_back(node);
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return text;
}

absl::Status RevokeKey(const std::string& path, std::string_view key_id) {
  return ChangeFile(path, /*may_create=*/false, [&](YAML::Node& root) -> absl::Status {
    YAML::Node kept(YAML::NodeType::Sequence);
    for (const YAML::Node& node : root["keys"]) {
      if (Field(node, "id") != std::string(key_id)) kept.push_back(node);
    }
    if (kept.size() == root["keys"].size())
      return absl::NotFoundError(path + ": no key has the id '" + std::string(key_id) + "'");
    root["keys"] = kept;
    return absl::OkStatus();
  });
}

}  // namespace weir::gateway
