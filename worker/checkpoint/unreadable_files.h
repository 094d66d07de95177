#pragma once

#include <cstdint>

// Checkpoint files are mapped, and what goes wrong with a mapped file, a signal tells: it was cut while in use, its
// disk or its network failed.  A process that reads checkpoints says which file that was, and ends.

namespace weir::worker {

// From then on, a read of a mapped file that fails calls `report`, in the thread that read, and then ends the process
// with code 1.  That thread holds no lock, but `report` should do no more than say so.  SIGBUS elsewhere stays what it
// is.
void ReportUnreadableFiles(void (*report)(const char* path));

// What to say after the path.
inline constexpr char kUnreadableFile[] =
    "cannot be read any more: it was cut while in use, or its disk or network failed";

// For Checkpoint.  `path` must live until the mapping is forgotten.
void NoteMapping(const void* address, int64_t num_bytes, const char* path);
void ForgetMapping(const void* address);

}  // namespace weir::worker
