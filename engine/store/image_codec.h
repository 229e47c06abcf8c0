// Image <-> OCI config and manifest; and OCI index.json (docs/format.md, Store, images).
//
// Decoders take hostile bytes: every field is checked, every count bounded (limits.h), the error
// says which field is wrong. They do not check digests: that is BlobStore::read_json's work.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "snap/digest.h"
#include "snap/result.h"
#include "snap/store.h"

namespace snap {

inline constexpr std::string_view kManifestMediaType = "application/vnd.oci.image.manifest.v1+json";
inline constexpr std::string_view kConfigMediaType = "application/vnd.oci.image.config.v1+json";
inline constexpr std::string_view kIndexMediaType = "application/vnd.oci.image.index.v1+json";
/// Not one of OCI's tar types: clients copy a type that they do not know bit by bit, but compress
/// an application/vnd.oci.image.layer.v1.tar on the way, which would change the digest.
inline constexpr std::string_view kLayerMediaType = "application/vnd.snapctl.layer.v1";
/// Label of the config that holds the virtual size in bytes. Labels that begin with dev.snapctl.
/// are ours.
inline constexpr std::string_view kSizeLabel = "dev.snapctl.size";
inline constexpr std::string_view kOwnLabelPrefix = "dev.snapctl.";
inline constexpr std::string_view kRefNameAnnotation = "org.opencontainers.image.ref.name";

struct EncodedImage {
  std::string config;    ///< JSON; its digest is the image's ID
  std::string manifest;  ///< JSON
  ImageId id;
  BlobDigest manifest_digest;
};

/// Config and manifest of `image`; its id, manifest and tags are not looked at. InvalidArgument for
/// what the decoder would refuse (sizes, counts, labels of ours, text that is not UTF-8).
Result<EncodedImage> encode_image(const Image& image);

/// What a manifest names, ours or anyone's.
struct ManifestParts {
  struct Blob {
    BlobDigest digest;
    std::uint64_t size = 0;
    std::string media_type;
  };
  Blob config;
  std::vector<Blob> layers;  ///< bottom first
};
Result<ManifestParts> decode_manifest(std::string_view json);

/// The image of a manifest and its config; `tags` is left empty. Unsupported if it is an OCI image,
/// but none of block layers.
Result<Image> decode_image(BlobDigest manifest_digest, const ManifestParts& manifest,
                           std::string_view config);

/// One entry of index.json.
struct IndexEntry {
  BlobDigest manifest;
  std::uint64_t size = 0;  ///< bytes of the manifest
  std::string media_type;
  std::optional<std::string> ref_name;  ///< as it stands there
  std::optional<Reference> reference;   ///< ref_name, if it is a reference
  std::string raw;                      ///< the entry as JSON: what we do not know is kept
};
/// A new entry of our own.
IndexEntry make_index_entry(BlobDigest manifest, std::uint64_t size,
                            std::optional<Reference> reference);

Result<std::vector<IndexEntry>> decode_index(std::string_view json);
std::string encode_index(const std::vector<IndexEntry>& entries);

/// Digests that a nested OCI index (or Docker manifest list) names.
Result<std::vector<IndexEntry>> decode_nested_index(std::string_view json);

}  // namespace snap
