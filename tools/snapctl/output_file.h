// A file that others may find only once it is whole.
#pragma once

#include <memory>
#include <string>

#include "snap/file.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap::cli {

/// What is to have a path, under a name of its own beside it until publish(): whoever finds the
/// path finds what was there before, or all. A symbolic link to a file is followed. What is no
/// regular file (a block device, say), or cannot be replaced where it is (a mounted file, a folder
/// that takes no files), is written in place.
class OutputFile {
 public:
  /// Makes the file, with the mode and owner of the one that it is to replace. Nothing is at `path`
  /// yet, and what is there stays until publish().
  static Task<Result<std::unique_ptr<OutputFile>>> create(std::string path);
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  /// Removes what was not published.
  ~OutputFile();

  File& file() noexcept { return *file_; }
  /// Where it is meanwhile: other programs may write to it.
  const std::string& path() const noexcept { return file_->path(); }
  /// What it is to be called, without folders; empty: it is written in place.
  const std::string& name() const noexcept { return name_; }

  /// Makes it stable, and gives it its name, stable too.
  Task<Result<void>> publish();

 private:
  OutputFile() = default;

  std::unique_ptr<File> file_;
  std::unique_ptr<Directory> folder_;  ///< none: written in place
  std::string name_, temporary_;       ///< in the folder; temporary: empty once published
};

}  // namespace snap::cli
