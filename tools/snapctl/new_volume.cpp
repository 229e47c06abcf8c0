// See new_volume.h.
#include "tools/snapctl/new_volume.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tools/snapctl/names.h"

namespace snap::cli {

Task<Result<VolumeRecord>> create_named(Store& store, Store::CreateOptions options) {
  if (!options.name.empty()) co_return co_await store.create_volume(options);
  auto listed = co_await store.volumes();
  if (!listed) co_return listed.error();
  std::vector<std::string> taken;
  for (const VolumeSummary& volume : *listed)
    taken.push_back(volume.record.name);
  for (;;) {
    options.name = made_up_name(taken);
    auto record = co_await store.create_volume(options);
    if (record || record.error().code() != ErrorCode::kExists) co_return record;
    taken.push_back(options.name);
  }
}

Task<Result<void>> take_image(Store& store, std::string text, Store::CreateOptions* options) {
  auto image = co_await find_image(store, text);
  if (!image) co_return image.error();
  options->image = *image;
  auto reference = Reference::parse(parse_object_name(text).name);
  const bool by_name = reference && std::find(image->tags.begin(), image->tags.end(), *reference) !=
                                        image->tags.end();
  options->image_name = by_name ? reference->str() : image->id.str();
  co_return Result<void>();
}

}  // namespace snap::cli
