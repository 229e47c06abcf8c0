// Tables whose exports are opened when they are asked for: what is looked up, and when.
#include <catch2/catch.hpp>

#include "engine/nbd/handshake.h"
#include "engine/nbd/memory_export.h"
#include "engine/nbd/test_client.h"

namespace snap::nbd {
namespace {

using Kind = Lookup::Kind;

/// Gives each connection a view, which has an export only from its lookup on.
class LazyTable final : public ExportTable {
 public:
  std::shared_ptr<Export> find(std::string_view) override { return nullptr; }
  std::vector<std::shared_ptr<Export>> list() override { return {}; }
  std::unique_ptr<ExportTable> for_connection() override { return std::make_unique<View>(*this); }

  std::vector<std::pair<Kind, std::string>> lookups;  // of one connection at a time

 private:
  class View final : public ExportTable {
   public:
    explicit View(LazyTable& table) : table_(table) {}
    Task<void> look_up(Lookup wanted) override {
      table_.lookups.emplace_back(wanted.kind, wanted.name);
      co_await yield_now();
      if (wanted.name == "disk" || wanted.kind == Kind::kList)
        found_ = std::make_shared<MemoryExport>("disk", 1u << 20, false, "opened late");
    }
    std::shared_ptr<Export> find(std::string_view name) override {
      return name == "disk" ? found_ : nullptr;
    }
    std::vector<std::shared_ptr<Export>> list() override { return {found_}; }
    std::string refusal() const override { return "it is in use elsewhere"; }

   private:
    LazyTable& table_;
    std::shared_ptr<Export> found_;
  };
};

TEST_CASE("each option that needs exports has them looked up first, and only what it needs") {
  FixedExports exports;
  Negotiation negotiation(exports);
  const auto wanted = [&negotiation](Option option, const Bytes& data) {
    const Lookup lookup = negotiation.wanted(static_cast<std::uint32_t>(option), data);
    return std::pair(lookup.kind, lookup.name);
  };
  CHECK(wanted(Option::kExportName, text_bytes("disk")) ==
        std::pair(Kind::kUse, std::string("disk")));
  CHECK(wanted(Option::kGo, Wire::info_data("disk")) == std::pair(Kind::kUse, std::string("disk")));
  CHECK(wanted(Option::kGo, Wire::info_data("")) == std::pair(Kind::kUse, std::string()));
  CHECK(wanted(Option::kInfo, Wire::info_data("disk")) ==
        std::pair(Kind::kDescribe, std::string("disk")));
  CHECK(wanted(Option::kSetMetaContext, Wire::context_data("disk", {})) ==
        std::pair(Kind::kUse, std::string("disk")));
  CHECK(wanted(Option::kListMetaContext, Wire::context_data("disk", {})) ==
        std::pair(Kind::kDescribe, std::string("disk")));
  CHECK(wanted(Option::kList, {}).first == Kind::kList);
  for (const Option option : {Option::kAbort, Option::kStartTls, Option::kStructuredReply})
    CHECK(wanted(option, {}).first == Kind::kNothing);
  // What is refused unseen opens nothing.
  CHECK(wanted(Option::kGo, text_bytes("disk")).first == Kind::kNothing);
  CHECK(wanted(Option::kGo, Wire::info_data(std::string(4097, 'x'))).first == Kind::kNothing);
  CHECK(wanted(Option::kExportName, Bytes(4097)).first == Kind::kNothing);
}

TEST_CASE("where TLS is required nothing is looked up before it has started") {
  FixedExports exports;
  Negotiation negotiation(exports, TlsPolicy::Mode::kRequired);
  const auto kind = [&negotiation](Option option, const Bytes& data) {
    return negotiation.wanted(static_cast<std::uint32_t>(option), data).kind;
  };
  const auto nothing = [&kind] {
    return kind(Option::kList, {}) == Kind::kNothing &&
           kind(Option::kExportName, text_bytes("disk")) == Kind::kNothing &&
           kind(Option::kInfo, Wire::info_data("disk")) == Kind::kNothing &&
           kind(Option::kGo, Wire::info_data("disk")) == Kind::kNothing &&
           kind(Option::kSetMetaContext, Wire::context_data("disk", {})) == Kind::kNothing;
  };
  CHECK(nothing());
  negotiation.tls_started();
  CHECK(kind(Option::kGo, Wire::info_data("disk")) == Kind::kUse);
  CHECK(kind(Option::kList, {}) == Kind::kList);
}

TEST_CASE(
    "an export that is opened for GO is served, and one that is not is refused with the reason") {
  LazyTable table;
  ServedClient served(table);
  Wire wire(served.client.get());
  wire.greet();
  wire.option(Option::kGo, Wire::info_data("other"));
  const auto refused = wire.option_reply(Option::kGo);
  CHECK(refused.type == OptionReply::kErrUnknown);
  CHECK(refused.data == text_bytes("it is in use elsewhere"));
  wire.option(Option::kExportName, text_bytes("disk"));
  CHECK(wire.receive(10).size() == 10);
  wire.request(Command::kRead, 7, 0, 512);
  CHECK(wire.chunk().cookie == 7);
  CHECK(wire.receive(512) == Bytes(512));
  CHECK(table.lookups ==
        std::vector<std::pair<Kind, std::string>>{{Kind::kUse, "other"}, {Kind::kUse, "disk"}});
}

}  // namespace
}  // namespace snap::nbd
