// Unpacks model files that `python -m keras_sq.pack` wrote. C++11, no dependencies:
//   size_t size;
//   if (keras_sq::UnpackedSize(packed, packed_size, &size) != keras_sq::kOk) return;
//   std::vector<uint8_t> model(size);
//   if (keras_sq::Unpack(packed, packed_size, model.data(), size) != keras_sq::kOk) return;
// The buffer has the model only if `Unpack` returns `kOk`. Takes 45 kB of stack. The format
// is described in container.py of keras_sq. Part of keras_sq, Apache License 2.0.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace keras_sq {
enum Status {
  kOk = 0,
  kDamaged = 1,         // Damaged, cut off, or no packed file.
  kUnknownVersion = 2,  // Packed by another version of keras_sq.
  kWrongSize = 3,       // The buffer does not have the size of the unpacked file.
  kNoMemory = 4,
};
namespace unpacking {
inline uint32_t Load(const uint8_t* p) {
  return p[0] | p[1] << 8 | p[2] << 16 | static_cast<uint32_t>(p[3]) << 24;
}

// CRC-32 as in zip files, eight bytes at a time.
inline uint32_t Crc(const uint8_t* p, size_t size, uint32_t crc = 0) {
  uint32_t t[8][256];
  for (uint32_t i = 0; i < 256; ++i) {
    t[0][i] = i;
    for (int k = 0; k < 8; ++k) t[0][i] = t[0][i] >> 1 ^ (t[0][i] & 1 ? 0xEDB88320u : 0);
  }
  for (int k = 1; k < 8; ++k)
    for (int i = 0; i < 256; ++i) t[k][i] = t[k - 1][i] >> 8 ^ t[0][t[k - 1][i] & 255];
  for (crc = ~crc; size >= 8; size -= 8, p += 8) {
    const uint32_t a = Load(p) ^ crc, b = Load(p + 4);
    crc = t[7][a & 255] ^ t[6][a >> 8 & 255] ^ t[5][a >> 16 & 255] ^ t[4][a >> 24] ^
          t[3][b & 255] ^ t[2][b >> 8 & 255] ^ t[1][b >> 16 & 255] ^ t[0][b >> 24];
  }
  for (; size > 0; --size) crc = crc >> 8 ^ t[0][(crc ^ *p++) & 255];
  return ~crc;
}
struct Bytes {
  const uint8_t *p, *end;
  size_t Left() const { return static_cast<size_t>(end - p); }
};

struct Unpacker {
  uint8_t *out, *out_end, *scratch;  // `scratch`: seven streams and the rest of the file.
  Bytes numbers, words, rest, tables[1024];
  uint32_t num_tables, lanes, states[512], slots[4096];
  bool good;
  bool Check(bool condition) { return good = good && condition; }
  // Returns the next number, of 7 bits a byte.
  uint32_t Next(Bytes* from) {
    for (uint64_t value = 0, shift = 0; shift < 35 && from->p < from->end; shift += 7) {
      value |= static_cast<uint64_t>(*from->p & 127) << shift;
      if (*from->p++ < 128 && value < 1u << 31) return static_cast<uint32_t>(value);
    }
    return Check(false);
  }
  uint32_t Next() { return Next(&numbers); }

  Status Run(const uint8_t* data, size_t size) {
    good = true, lanes = 1u << data[5];
    numbers = {data + 28, data + 28 + Load(data + 20)}, words = {numbers.end, data + size};
    if (words.Left() < 4 * lanes || words.Left() % 2) return kDamaged;
    for (uint32_t i = 0; i < lanes; ++i, words.p += 4) states[i] = Load(words.p);
    num_tables = Next();
    if (!Check(num_tables <= 1024)) return kDamaged;
    for (uint32_t i = 0; i < num_tables; ++i) tables[i] = numbers, ReadTable(&numbers);
    uint32_t sizes[8], indices[8];  // The last size is that of the rest.
    uint64_t total = 0;
    for (int i = 0; i < 8; total += sizes[i++]) sizes[i] = Next(), indices[i] = i < 7 ? Next() : 0;
    if (!Check(total / 4 <= static_cast<size_t>(out_end - out))) return kDamaged;
    if (total < SIZE_MAX) scratch = static_cast<uint8_t*>(malloc(static_cast<size_t>(total) + 1));
    if (scratch == nullptr) return kNoMemory;
    Bytes streams[7];
    uint8_t* place = scratch;
    for (int i = 0; i < 7; place += sizes[i++])
      streams[i] = {place, place + sizes[i]}, Decode(indices[i], place, sizes[i], 1, 8);
    Join(streams, place, sizes[7]);
    rest = {place, place + sizes[7]};
    for (uint32_t left = Next(); left > 0 && good; --left) Segment();
    Copy(static_cast<size_t>(out_end - out));
    for (uint32_t i = 0; i < lanes; ++i) Check(states[i] == 65536);
    return Check(!words.Left() && !rest.Left() && !numbers.Left()) ? kOk : kDamaged;
  }

  // Reads a table into `slots`: symbol, offset, and frequency - 1.
  void ReadTable(Bytes* table) {
    uint32_t base = Next(table), beyond = 4096 - 256 * base, zeros = 0, begin = 0, symbol = 0;
    for (Check(base <= 16); symbol < 256 && good; ++symbol) {
      uint32_t size = 0;
      if (zeros > 0) --zeros;
      else if (beyond > 0 && (size = Next(table)) == 0) zeros = Next(table);
      if (!Check(size <= beyond)) return;
      beyond -= size, size += base;
      for (uint32_t i = 0; i < size; ++i) slots[begin++] = symbol << 24 | i << 12 | (size - 1);
    }
    Check(beyond == 0);
  }

  // Decodes symbols of so many bits, the lowest of a byte first, to every `stride`-th byte.
  void Decode(uint32_t table, uint8_t* to, size_t count, size_t stride, uint32_t bits) {
    if (!Check(table < num_tables)) return;
    Bytes frequencies = tables[table], left = words;
    ReadTable(&frequencies);
    for (size_t row = 0; row < count && good; row += lanes)
      for (size_t i = 0; i < lanes && row + i < count; ++i) {
        const uint32_t slot = slots[states[i] & 4095];
        uint32_t x = ((slot & 4095) + 1) * (states[i] >> 12) + (slot >> 12 & 4095);
        if (x < 65536 && Check(left.p < left.end))
          x = x << 16 | left.p[0] | left.p[1] << 8, left.p += 2;
        states[i] = x;
        const size_t bit = (row + i) * bits;
        uint8_t& byte = to[bit / 8 * stride];
        byte = static_cast<uint8_t>((bit % 8 ? byte : 0) | slot >> 24 << bit % 8);
      }
    words = left;
  }

  // Makes the rest of the file of literals and copies.
  void Join(Bytes* streams, uint8_t* to, size_t size) {
    for (size_t at = 0, distance = 0; at < size && good;) {
      uint64_t end = static_cast<uint64_t>(at) + Next(&streams[0]);
      for (Check(end <= size); at < end && good; ++at)
        if (Check(streams[3 + at % 4].Left() > 0)) to[at] = *streams[3 + at % 4].p++;
      if (at == size) return;
      end = static_cast<uint64_t>(at) + Next(&streams[1]) + 3;
      if (const uint32_t back = Next(&streams[2])) distance = back;
      Check(distance > 0 && distance <= at && end <= size);
      for (; at < end && good; ++at) to[at] = to[at - distance];
    }
  }

  // Copies bytes of the rest to the file.
  void Copy(size_t size) {
    Check(size <= rest.Left() && size <= static_cast<size_t>(out_end - out));
    for (; good && size > 0; --size) *out++ = *rest.p++;
  }

  void Segment() {
    Copy(Next());
    const uint32_t kind = Next(), width = Next();
    const size_t size = Next();
    Check(size <= static_cast<size_t>(out_end - out) && kind < 3);
    if (!Check(width && 8 % width == 0 && (kind == 0 || size % width == 0))) return;
    out += size;
    if (kind == 0) Decode(Next(), out - size, size * 8 / width, 1, width);
    for (uint32_t i = 0; kind == 1 && i < width; ++i)
      Decode(Next(), out - size + i, size / width, width, 8);
    if (kind == 2) Values(out - size, size / width, width);
  }

  // Values of which each channel has few. Symbols are overwritten after they are read.
  void Values(uint8_t* to, size_t size, uint32_t width) {
    const uint64_t channels = Next(), inner = Next(), count = Next(), period = channels * inner;
    const uint8_t *values = rest.p, *symbol = out - size;
    if (!Check(period && size % period == 0 && channels * count <= rest.Left() / width)) return;
    rest.p += channels * count * width;
    Decode(Next(), out - size, size, 1, 8);
    while (symbol < out && good)
      for (uint64_t channel = 0; channel < channels; ++channel)
        for (uint64_t i = 0; i < inner; ++i, ++symbol, to += width) {
          if (!Check(*symbol < count)) return;
          const uint8_t* value = values + (channel * count + *symbol) * width;
          if (width == 4) memcpy(to, value, 4);
          else for (uint32_t k = 0; k < width; ++k) to[k] = value[k];
        }
  }
};
}  // namespace unpacking

// Sets `size` to the size of the unpacked file; reads the header and its check sum.
inline Status UnpackedSize(const uint8_t* data, size_t data_size, size_t* size) {
  if (data_size < 28 || memcmp(data, "SQPK", 4) != 0) return kDamaged;
  if (data[4] != 1) return kUnknownVersion;
  const size_t description = unpacking::Load(data + 20);
  if (unpacking::Load(data + 12) != data_size || description > data_size - 28) return kDamaged;
  const uint32_t crc = unpacking::Crc(data + 28, description, unpacking::Crc(data, 24));
  if (crc != unpacking::Load(data + 24) || data[5] > 9 || data[6] || data[7]) return kDamaged;
  *size = unpacking::Load(data + 8);
  return *size > 0x7FFFFFFF ? kDamaged : kOk;
}

// Unpacks a file into a buffer of the size that `UnpackedSize` gave.
inline Status Unpack(const uint8_t* data, size_t data_size, uint8_t* out, size_t out_size) {
  size_t size;
  Status status = UnpackedSize(data, data_size, &size);
  if (status != kOk || size != out_size) return status != kOk ? status : kWrongSize;
  unpacking::Unpacker unpacker = unpacking::Unpacker();
  unpacker.out = out, unpacker.out_end = out + out_size;
  status = unpacker.Run(data, data_size);
  free(unpacker.scratch);
  if (status == kOk && unpacking::Crc(out, size) != unpacking::Load(data + 16)) return kDamaged;
  return status;
}
}  // namespace keras_sq
