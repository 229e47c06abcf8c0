// Every limit of snapctl, in one place. What comes from disk or wire is checked against these
// before anything is allocated.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace snap {

// Volumes and images
inline constexpr std::uint64_t kMaxVolumeSize = std::uint64_t{256} << 40;  ///< 2^32 chunks
inline constexpr std::size_t kMaxLayersPerImage = 4000;  ///< 12-bit source of the resolved map
inline constexpr std::size_t kMaxSealedDeltas = 8;       ///< more are packed first
inline constexpr std::size_t kMaxVolumeName = 128;
inline constexpr std::size_t kMaxReference = 255;
inline constexpr std::size_t kMaxLabels = 256;
inline constexpr std::size_t kMaxLabelBytes = 4096;

// Metadata files (config, manifest, index.json, volume.json)
inline constexpr std::size_t kMaxJsonBytes = 16u << 20;
inline constexpr std::size_t kMaxIndexEntries = 50000;  ///< tags and untagged images of a store
inline constexpr std::size_t kMaxSnapshots = 4096;      ///< of a volume

// Layer files
inline constexpr std::size_t kSliceEntries = 64;       ///< chunk table entries in a 4 KiB slice
inline constexpr std::size_t kMaxStoredChunk = 65536;  ///< a compressed chunk is never larger
inline constexpr std::size_t kDecompressedCacheBytes = 64u << 20;  ///< a process
inline constexpr std::size_t kSliceCacheBytes = 16u << 20;         ///< decoded slices, a process
inline constexpr std::size_t kLayerBatchBytes = 4u << 20;          ///< a writer holds three batches
inline constexpr std::size_t kLayerPieceBytes = 1u << 20;     ///< one write or read of a layer file
inline constexpr std::uint64_t kLayerSyncBytes = 128u << 20;  ///< a writer syncs as it goes
/// An entry may share the stored bytes of one of this many stored before it.
inline constexpr std::size_t kShareWindow = 131072;

// Delta
inline constexpr std::size_t kMaxPunchBytes = 8u << 20;   ///< a punch yields after this much
inline constexpr std::size_t kMaxWritePiece = 64u << 10;  ///< one write of the data file
inline constexpr std::size_t kMaxReadPiece = 128u << 10;  ///< one inline read
inline constexpr std::size_t kSmallFlushBlocks = 256;     ///< a flush of more syncs the data file
inline constexpr std::uint64_t kJournalAreaInitial = 64u << 10;
inline constexpr std::uint64_t kJournalAreaMax = 64u << 20;  ///< to which the two areas grow
inline constexpr std::uint64_t kJournalMax = 256u << 20;     ///< beyond this a journal is refused

// NBD (the protocol asks that 32 MiB payloads are taken and 4096-byte names)
inline constexpr std::size_t kMaxNbdPayload = 32u << 20;
inline constexpr std::size_t kMaxNbdName = 4096;
inline constexpr std::size_t kMaxNbdOption = 64u << 10;
inline constexpr std::size_t kMaxRequestsInFlight = 256;       ///< a connection
inline constexpr std::size_t kMaxConnectionBytes = 64u << 20;  ///< payload in flight, a connection
inline constexpr std::size_t kConnectionShare = 1u << 20;      ///< payload it need not ask for
inline constexpr std::size_t kMaxServerBytes = 512u << 20;  ///< payload in all, beyond the shares
inline constexpr std::size_t kKeptBuffers = 16u << 20;  ///< unused payload buffers, a connection
inline constexpr std::size_t kMaxStatusExtents = 4096;  ///< extents a BLOCK_STATUS looks at
inline constexpr std::chrono::seconds kMemoryPatience{10};  ///< then a request gets ENOMEM
inline constexpr std::size_t kMaxConnections = 256;         ///< a server
inline constexpr std::chrono::seconds kHandshakeTimeout{10};
inline constexpr std::chrono::seconds kDrainTimeout{25};

// Memory of a server
inline constexpr std::size_t kMemoryReserve = 16u << 20;  ///< engine/base/memory_reserve.h

// TLS
inline constexpr std::size_t kMaxTlsFile = 1u << 20;  ///< a file of certificates or keys
inline constexpr std::size_t kMaxPskName = 128;       ///< of a client
inline constexpr std::size_t kMinPskKey = 16;         ///< bytes: 128 bits
inline constexpr std::size_t kMaxPskKey = 512;
inline constexpr std::size_t kTlsSendBytes = 64u << 10;     ///< encrypted at once, a connection
inline constexpr std::size_t kTlsReceiveBytes = 64u << 10;  ///< received and not decrypted yet

// Serving a store
inline constexpr std::size_t kMaxListedExports = 10000;  ///< that LIST tells of
inline constexpr std::chrono::seconds kIdleOpen{10};     ///< then what no client has is closed
inline constexpr std::size_t kMaxIdleOpen = 64;          ///< the oldest are closed earlier
inline constexpr std::size_t kMaxRemembered = 1024;      ///< closed volumes whose counts are kept

// Metrics over HTTP
inline constexpr std::size_t kMaxMetricsClients = 8;
inline constexpr std::size_t kMaxHttpRequest = 8u << 10;
inline constexpr std::chrono::seconds kHttpTimeout{5};  ///< from accept to the last byte

// Control socket
inline constexpr std::size_t kMaxControlMessage = 1u << 20;

}  // namespace snap
