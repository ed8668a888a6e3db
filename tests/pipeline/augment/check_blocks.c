/* Compare read_block and skip_block with a decoder that reads bit by bit, for each value of the first lookup. */

#include "huffman.h"

#define DATA_BYTES 1024

typedef struct {
  const uint8_t *data;
  int position; /* in bits */
} Bits;

static int take_bits(Bits *bits, int count) {
  int value = 0;
  for (; count; count--, bits->position++) {
    value = value << 1 | (bits->data[bits->position / 8] >> (7 - bits->position % 8) & 1);
  }
  return value;
}

/* Decode a symbol as T.81, F.2.2.3; -1 if no code matches. */
static int plain_symbol(Bits *bits, const uint8_t *counts, const uint8_t *symbols) {
  int code = 0, first = 0, index = 0;
  for (int length = 1; length <= 16; length++) {
    code = code << 1 | take_bits(bits, 1);
    if (code - first < counts[length - 1]) return symbols[index + code - first];
    index += counts[length - 1];
    first = (first + counts[length - 1]) << 1;
  }
  return -1;
}

/* Decode the AC coefficients of a block as T.81, F.2.2.2, into row-major order. */
static int plain_block(Bits *bits, const uint8_t *counts, const uint8_t *symbols, int16_t *coefficients) {
  for (int k = 1; k < BLOCK; k++) {
    int symbol = plain_symbol(bits, counts, symbols);
    if (symbol < 0) return DAMAGED;
    int run = symbol >> 4, size = symbol & 15;
    if (!size && run != 15) break;
    k += run;
    int value = size ? take_bits(bits, size) : 0;
    if (k >= BLOCK) return DAMAGED;
    if (size) coefficients[zigzag[k]] = (int16_t)(value < 1 << (size - 1) ? value - (1 << size) + 1 : value);
  }
  return DECODED;
}

static uint32_t next_random(uint32_t *state) {
  *state = *state * 1664525 + 1013904223;
  return *state >> 8;
}

/* Put `count` bits of `value` at `position`; return the position behind them. */
static int put_bits(uint8_t *data, int position, uint32_t value, int count) {
  for (int i = count - 1; i >= 0; i--, position++) {
    uint8_t mask = (uint8_t)(128 >> position % 8);
    data[position / 8] = (uint8_t)((value >> i & 1) ? data[position / 8] | mask : data[position / 8] & ~mask);
  }
  return position;
}

/* Return how many of the 1024 * `rounds` blocks are decoded in another way than the plain decoder does. Each begins
   with a DC coefficient and up to three random symbols; then come the bits of a lookup and random ones. */
int check_blocks(const uint8_t *counts, const uint8_t *symbols, int number, int rounds, uint32_t seed) {
  static Table dc, ac;
  static uint16_t factors[2 * BLOCK];
  static const uint8_t one_code[16] = {1}, zero[1] = {0};
  uint32_t codes[256];
  int lengths[256], wrong = 0;
  if (build_table(&dc, one_code, zero, 1, 1) || build_table(&ac, counts, symbols, number, 0)) return -1;
  for (int i = 0; i < BLOCK; i++) factors[i] = 1;
  for (int length = 1, code = 0, i = 0; length <= 16; length++, code <<= 1) {
    for (int n = 0; n < counts[length - 1]; n++, i++, code++) codes[i] = (uint32_t)code, lengths[i] = length;
  }
  for (uint32_t trial = 0; trial < TABLE_SIZE * (uint32_t)rounds; trial++) {
    uint8_t data[DATA_BYTES + 64] = {0};
    for (int i = 0; i < DATA_BYTES; i++) data[i] = (uint8_t)next_random(&seed);
    int position = put_bits(data, 0, 0, 1);
    for (int before = (int)(trial / TABLE_SIZE) & 3; before; before--) {
      int i = (int)(next_random(&seed) % (uint32_t)number);
      position = put_bits(data, position, codes[i], lengths[i]) + (symbols[i] & 15);
    }
    put_bits(data, position, trial % TABLE_SIZE, LOOKUP_BITS);

    Bits bits = {data, 1};
    int16_t expected[BLOCK + 1] = {0}, read[BLOCK + 1] = {0};
    int problem = plain_block(&bits, counts, symbols, expected), last;
    Component component = {0};
    BitReader reading = {.at = data}, skipping = {.at = data};
    int read_problem = read_block(&component, &dc, &ac, factors, &reading, read, &last);
    int skip_problem = skip_block(&component, &dc, &ac, &skipping);
    int same = read_problem == problem && skip_problem == problem;
    if (same && !problem) {
      same = 8 * (reading.at - data) - reading.count == bits.position &&
             8 * (skipping.at - data) - skipping.count == bits.position &&
             !memcmp(read, expected, BLOCK * sizeof *read);
    }
    wrong += !same;
  }
  return wrong;
}
