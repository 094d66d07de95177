#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "scheduler/core/check.h"

// A binary heap of small integers that knows where each of them stands, so that any of them can be removed or moved
// after its rank changed.  `Less` must be a strict total order: the order of equals would depend on history.

namespace weir::scheduler {

template <typename Less>
class IndexedHeap {
 public:
  explicit IndexedHeap(Less less) : less_(std::move(less)) {}

  // Items are in [0, num_items).  Only grows.
  void Resize(int32_t num_items) { positions_.resize(num_items, -1); }

  bool empty() const { return heap_.empty(); }
  int32_t size() const { return static_cast<int32_t>(heap_.size()); }
  int32_t top() const { return heap_.front(); }
  bool Contains(int32_t item) const { return positions_[item] >= 0; }

  void Push(int32_t item) {
    WEIR_CHECK(!Contains(item), "pushed twice");
    heap_.push_back(item);
    SiftUp(static_cast<int32_t>(heap_.size()) - 1, item);
  }

  void Remove(int32_t item) {
    WEIR_CHECK(Contains(item), "not in the heap");
    const int32_t position = positions_[item];
    const int32_t last = heap_.back();
    heap_.pop_back();
    positions_[item] = -1;
    if (last != item) Place(position, last);
  }

  // The rank of `item` changed.
  void Update(int32_t item) { Place(positions_[item], item); }

 private:
  void Place(int32_t position, int32_t item) {
    if (position > 0 && less_(item, heap_[(position - 1) / 2])) {
      SiftUp(position, item);
    } else {
      SiftDown(position, item);
    }
  }

  void SiftUp(int32_t position, int32_t item) {
    for (int32_t parent = (position - 1) / 2; position > 0 && less_(item, heap_[parent]); parent = (position - 1) / 2) {
      Put(position, heap_[parent]);
      position = parent;
    }
    Put(position, item);
  }

  void SiftDown(int32_t position, int32_t item) {
    const auto size = static_cast<int32_t>(heap_.size());
    for (int32_t child = 2 * position + 1; child < size; child = 2 * position + 1) {
      if (child + 1 < size && less_(heap_[child + 1], heap_[child])) ++child;
      if (!less_(heap_[child], item)) break;
      Put(position, heap_[child]);
      position = child;
    }
    Put(position, item);
  }

  void Put(int32_t position, int32_t item) {
    heap_[position] = item;
    positions_[item] = position;
  }

  Less less_;
  std::vector<int32_t> heap_;
  std::vector<int32_t> positions_;  // by item; -1: not in the heap
};

}  // namespace weir::scheduler
