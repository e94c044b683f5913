// Unpacks model files that `python -m keras_sq.pack` wrote. Java 7 or later, and Kotlin:
//
//   byte[] model = keras_sq.Unpacker.unpack(packed);
//
// The format is described in container.py of keras_sq. Part of keras_sq, Apache License 2.0.
package keras_sq;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.zip.CRC32;

/** Unpacks model files of keras_sq. */
public final class Unpacker {
  private final byte[] data;
  private final byte[] out;
  private final int[] states;
  private final int[] slots = new int[4096]; // Symbol, offset, and frequency - 1.
  private final int descriptionEnd;
  private int[] tables; // Where each table begins.
  private int place = 28; // In the description.
  private int word; // In the codes.
  private int length; // Of the last number, in bytes.

  private Unpacker(byte[] data, byte[] out, int descriptionBytes) {
    this.data = data;
    this.out = out;
    descriptionEnd = 28 + descriptionBytes;
    states = new int[1 << data[5]];
    word = descriptionEnd;
  }

  /** Returns the unpacked file; throws if it is damaged, of another version, or not packed. */
  public static byte[] unpack(byte[] packed) throws IOException {
    ByteBuffer header = ByteBuffer.wrap(packed).order(ByteOrder.LITTLE_ENDIAN);
    check(packed.length >= 28 && header.getInt(0) == 0x4B505153); // "SQPK"
    if (packed[4] != 1) throw new IOException("The model needs another version of keras_sq.");
    int size = header.getInt(8), descriptionBytes = header.getInt(20);
    check(header.getInt(12) == packed.length && size >= 0);
    check(descriptionBytes >= 0 && descriptionBytes <= packed.length - 28);
    CRC32 sum = new CRC32();
    sum.update(packed, 0, 24);
    sum.update(packed, 28, descriptionBytes);
    check((int) sum.getValue() == header.getInt(24));
    check(packed[5] >= 0 && packed[5] <= 9 && packed[6] == 0 && packed[7] == 0);
    byte[] out = new byte[size];
    try {
      new Unpacker(packed, out, descriptionBytes).run(header);
    } catch (IndexOutOfBoundsException e) {
      throw new IOException("The packed model is damaged.", e);
    }
    sum.reset();
    sum.update(out, 0, size);
    check((int) sum.getValue() == header.getInt(16));
    return out;
  }

  private static void check(boolean condition) throws IOException {
    if (!condition) throw new IOException("The packed model is damaged.");
  }

  private void run(ByteBuffer bytes) throws IOException {
    check((data.length - word) % 2 == 0);
    for (int i = 0; i < states.length; ++i, word += 4) states[i] = bytes.getInt(word);
    int numTables = next();
    check(numTables <= 1024);
    tables = new int[numTables];
    for (int i = 0; i < numTables; ++i, readTable()) tables[i] = place;
    int[] sizes = new int[8], indices = new int[8]; // Of seven streams; size of the rest.
    long total = 0;
    for (int i = 0; i < 8; total += sizes[i++]) {
      sizes[i] = next();
      indices[i] = i < 7 ? next() : 0;
    }
    check(total / 4 <= out.length);
    byte[][] streams = new byte[7][];
    for (int i = 0; i < 7; ++i) {
      streams[i] = new byte[sizes[i]];
      decode(indices[i], streams[i], 0, sizes[i], 1, 8);
    }
    segments(join(streams, sizes[7]));
    for (int state : states) check(state == 65536);
    check(word == data.length && place == descriptionEnd);
  }

  private int next() throws IOException {
    int value = next(data, place, descriptionEnd);
    place += length;
    return value;
  }

  /** Returns a number of 7 bits a byte. */
  private int next(byte[] from, int at, int end) throws IOException {
    long value = from[at] & 127;
    for (length = 1; from[at + length - 1] < 0; ++length) {
      check(length < 5);
      value |= (long) (from[at + length] & 127) << 7 * length;
    }
    check(at + length <= end && value <= Integer.MAX_VALUE);
    return (int) value;
  }

  private void readTable() throws IOException {
    int base = next(), beyond = 4096 - 256 * base;
    check(base <= 16);
    for (int symbol = 0, zeros = 0, begin = 0; symbol < 256; ++symbol) {
      int size = 0;
      if (zeros > 0) --zeros;
      else if (beyond > 0 && (size = next()) == 0) zeros = next();
      check(size <= beyond);
      beyond -= size;
      size += base;
      for (int i = 0; i < size; ++i) slots[begin++] = symbol << 24 | i << 12 | (size - 1);
    }
    check(beyond == 0);
  }

  /** Decodes symbols of so many bits, the lowest of a byte first, to every stride-th byte. */
  private void decode(int table, byte[] to, int first, long count, int stride, int bits)
      throws IOException {
    int after = place;
    place = tables[table];
    readTable();
    place = after;
    for (int at = first, lane = 0, shift = 0; count > 0; --count, ++lane) {
      if (lane == states.length) lane = 0;
      int x = states[lane];
      int slot = slots[x & 4095];
      x = ((slot & 4095) + 1) * (x >>> 12) + (slot >>> 12 & 4095);
      if (x >>> 16 == 0) {
        x = x << 16 | data[word] & 255 | (data[word + 1] & 255) << 8;
        word += 2;
      }
      states[lane] = x;
      to[at] = (byte) ((shift == 0 ? 0 : to[at]) | slot >>> 24 << shift);
      shift = shift + bits & 7;
      if (shift == 0) at += stride;
    }
  }

  private byte[] join(byte[][] streams, int size) throws IOException {
    byte[] rest = new byte[size];
    int[] at = new int[7]; // In each stream.
    for (int to = 0, distance = 0; to < size; ) {
      long end = to + (long) next(streams[0], at[0], streams[0].length);
      at[0] += length;
      check(end <= size);
      for (; to < end; ++to) rest[to] = streams[3 + to % 4][at[3 + to % 4]++];
      if (to == size) break;
      end = to + 3L + next(streams[1], at[1], streams[1].length);
      at[1] += length;
      int back = next(streams[2], at[2], streams[2].length);
      at[2] += length;
      if (back > 0) distance = back;
      check(distance > 0 && distance <= to && end <= size);
      for (; to < end; ++to) rest[to] = rest[to - distance];
    }
    return rest;
  }

  private void segments(byte[] rest) throws IOException {
    int at = 0, used = 0; // Bytes of the file, and of the rest.
    for (int left = next(); left > 0; --left) {
      int gap = next(), kind = next(), width = next(), size = next();
      check(gap <= out.length - at && size <= out.length - at - gap && kind < 3);
      check(width > 0 && 8 % width == 0 && (kind == 0 || size % width == 0));
      System.arraycopy(rest, used, out, at, gap);
      used += gap;
      at += gap;
      if (kind == 0) decode(next(), out, at, size * 8L / width, 1, width);
      for (int i = 0; kind == 1 && i < width; ++i)
        decode(next(), out, at + i, size / width, width, 8);
      if (kind == 2) used = values(rest, used, at, size / width, width);
      at += size;
    }
    check(rest.length - used == out.length - at);
    System.arraycopy(rest, used, out, at, rest.length - used);
  }

  /** Values of which each channel has few; returns how much of the rest is used. */
  private int values(byte[] rest, int used, int to, int size, int width) throws IOException {
    int channels = next(), inner = next(), count = next();
    long period = (long) channels * inner;
    check(period > 0 && size % period == 0);
    check((long) channels * count <= (rest.length - used) / width);
    int symbol = to + size * (width - 1); // Symbols are overwritten after they are read.
    int end = symbol + size;
    decode(next(), out, symbol, size, 1, 8);
    while (symbol < end)
      for (int channel = 0; channel < channels; ++channel)
        for (int i = 0; i < inner; ++i) {
          int which = out[symbol++] & 255;
          check(which < count);
          int value = used + (channel * count + which) * width;
          for (int k = 0; k < width; ++k) out[to++] = rest[value++];
        }
    return used + channels * count * width;
  }
}
