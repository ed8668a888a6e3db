/* The entropy coding of JPEG: bits, Huffman tables, and the blocks of coefficients behind them.

   A look into a table sees LOOK bits and tells all the symbols that lie in them. What takes the time is the way from
   one look to the next, which needs the length of the one before: so a look tells of two symbols where a block is
   wanted, and of as many as there are where it is skipped. Source: ITU-T T.81, F.2.2. */

#ifndef JPEG_HUFFMAN_H
#define JPEG_HUFFMAN_H

#include <stdint.h>
#include <string.h>

enum { DECODED = 0, OTHER_KIND = 1, DAMAGED = 2 };

#define INLINE static inline __attribute__((always_inline))
#define BLOCK 64
#define LOOK 10
#define LOOKS (1u << LOOK)
#define LONGEST_CODE 16

/* Positions beyond the block, where an end of block taken as 64 coefficients onward leads, are one place behind it. */
static const uint8_t zigzag[2 * BLOCK] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45,
    38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64,
    64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64,
    64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64};

/* ---- Bits ---------------------------------------------------------------------------------------------------- */

typedef struct {
  const uint8_t *at; /* in data without stuffing, with a margin behind it */
  uint64_t bits;     /* the next bit is the highest */
  int count;         /* of valid bits */
} Reader;

/* Has at least 56 valid bits afterwards. Bits beyond the whole bytes come again the next time, and are the same. */
INLINE void refill(Reader *in) {
  uint64_t next;
  memcpy(&next, in->at, sizeof next);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  next = __builtin_bswap64(next);
#endif
  in->bits |= next >> in->count;
  in->at += (63 - in->count) >> 3;
  in->count |= 56;
}

INLINE void drop(Reader *in, int bits) {
  in->bits <<= bits;
  in->count -= bits;
}

/* The first byte of which no bit was taken. */
INLINE const uint8_t *position_of(const Reader *in) { return in->at - in->count / 8; }

/* ---- Tables -------------------------------------------------------------------------------------------------- */

/* What a look tells of one symbol: value (16 bits, signed) | bits of the value that the look did not see (4) |
   coefficients onward (7) | length with the value (5). A length of 0: the code is longer than the look. */
#define END_OF_BLOCK 64
#define LENGTH(entry) ((int)((entry)&31))
#define ONWARD(entry) ((int)((entry) >> 5 & 127))
#define UNSEEN(entry) ((int)((entry) >> 12 & 15))
#define VALUE(entry) ((int32_t)(entry) >> 16)
#define WITH_VALUE(entry, value) (((entry)&0xFFF) | (uint32_t)(value) << 16)

/* Two symbols, or one and a second that does nothing. A length of 0: not one lies whole in the look. */
typedef struct {
  int16_t values[2];
  uint8_t onward[2];
  uint8_t length, first_length;
} Pair;

typedef struct {
  int there;
  uint32_t single[LOOKS];
  Pair pairs[LOOKS];
  uint16_t several[LOOKS];           /* end of block (1 bit) | onward (7) | length (5) */
  int32_t largest[LONGEST_CODE + 1]; /* code of each length, -1 for none */
  int32_t offset[LONGEST_CODE + 1];  /* of a code's symbol from the code */
  uint8_t symbols[256];
} Table;

/* The value of so many bits: those that begin with 0 are negative. */
INLINE int extended(int value, int bits) { return value < 1 << (bits - 1) ? value - (1 << bits) + 1 : value; }

INLINE uint32_t entry_of(int symbol, int length, int is_dc) {
  int run = is_dc ? 0 : symbol >> 4, bits = symbol & 15;
  int onward = is_dc || bits ? run + 1 : run == 15 ? 16 : END_OF_BLOCK;
  return (uint32_t)(bits << 12 | onward << 5 | (length + bits));
}

static void combine(Table *table) {
  for (unsigned seen = 0; seen < LOOKS; seen++) {
    uint32_t first = table->single[seen];
    int whole = LENGTH(first) && LENGTH(first) <= LOOK;
    uint32_t second = whole ? table->single[seen << LENGTH(first) & (LOOKS - 1)] : 0;
    int both = LENGTH(second) && LENGTH(first) + LENGTH(second) <= LOOK && ONWARD(first) != END_OF_BLOCK;
    table->pairs[seen] = (Pair){
        .values = {(int16_t)VALUE(first), both ? (int16_t)VALUE(second) : 0},
        .onward = {(uint8_t)ONWARD(first), both ? (uint8_t)ONWARD(second) : 0},
        .length = whole ? (uint8_t)(LENGTH(first) + (both ? LENGTH(second) : 0)) : 0,
        .first_length = (uint8_t)LENGTH(first),
    };
    int length = 0, onward = 0, end = 0;
    while (!end) {
      uint32_t next = table->single[seen << length & (LOOKS - 1)];
      if (!LENGTH(next) || length + LENGTH(next) > LOOK) break;
      length += LENGTH(next);
      end = ONWARD(next) == END_OF_BLOCK;
      onward += end ? 0 : ONWARD(next);
    }
    table->several[seen] = (uint16_t)(end << 12 | onward << 5 | length);
  }
}

/* Make a table of the numbers of codes of each length, and their symbols. */
static int build(Table *table, const uint8_t *counts, const uint8_t *symbols, int number, int is_dc) {
  table->there = 0;
  memset(table->single, 0, sizeof table->single);
  memset(table->symbols, 0, sizeof table->symbols);
  memcpy(table->symbols, symbols, number);
  int code = 0, position = 0;
  for (int length = 1; length <= LONGEST_CODE; length++, code <<= 1) {
    table->offset[length] = position - code;
    if (code + counts[length - 1] > 1 << length) return DAMAGED;
    for (int i = 0; i < counts[length - 1]; i++, code++, position++) {
      if (is_dc && symbols[position] > 11) return OTHER_KIND;
      if (length > LOOK) continue;
      uint32_t entry = entry_of(symbols[position], length, is_dc);
      int bits = UNSEEN(entry), behind = LOOK - length;
      for (int rest = 0; rest < 1 << behind; rest++) {
        int seen = bits && bits <= behind;
        table->single[(code << behind) + rest] =
            seen ? WITH_VALUE(entry, extended(rest >> (behind - bits), bits)) : entry;
      }
    }
    table->largest[length] = counts[length - 1] ? code - 1 : -1;
  }
  if (!is_dc) combine(table);
  table->there = 1;
  return DECODED;
}

static uint32_t long_code(const Table *table, const Reader *in, int is_dc) {
  for (int length = LOOK + 1; length <= LONGEST_CODE; length++) {
    int code = (int)(in->bits >> (64 - length));
    if (code <= table->largest[length]) {
      return entry_of(table->symbols[(code + table->offset[length]) & 255], length, is_dc);
    }
  }
  return 0;
}

/* Take one symbol with its value, of at most 27 bits; its entry has no length where no code is like what comes. */
INLINE uint32_t take_symbol(Reader *in, const Table *table, int is_dc) {
  uint32_t entry = table->single[in->bits >> (64 - LOOK)];
  if (__builtin_expect(!LENGTH(entry), 0)) entry = long_code(table, in, is_dc);
  int bits = UNSEEN(entry), length = LENGTH(entry);
  if (bits) entry = WITH_VALUE(entry, extended((int)(in->bits << (length - bits) >> (64 - bits)), bits));
  drop(in, length);
  return entry;
}

/* ---- Blocks -------------------------------------------------------------------------------------------------- */

typedef struct {
  int horizontal, vertical; /* blocks of an MCU */
  int factors;              /* number of its quantisation table */
  int dc, ac;               /* numbers of its Huffman tables */
  uint32_t predicted;       /* constant term of the block before; signed, but may run over in damaged data */
} Component;

INLINE int read_constant(Component *component, const Table *table, Reader *in) {
  refill(in);
  uint32_t entry = take_symbol(in, table, 1);
  component->predicted += (uint32_t)VALUE(entry);
  return LENGTH(entry) ? DECODED : DAMAGED;
}

/* Read the coefficients of a block, times their factors, which are in zigzag order with as many zeros behind.
   `coefficients` has a place behind the block; `*last` is the position of the last that is there, or 0. */
INLINE int read_block(Component *component, const Table *dc, const Table *ac, const uint16_t *factors, Reader *reader,
                      int16_t *coefficients, int *last) {
  Reader in = *reader;
  if (read_constant(component, dc, &in)) return DAMAGED;
  memset(coefficients, 0, BLOCK * sizeof *coefficients);
  coefficients[0] = (int16_t)(component->predicted * factors[0]);
  int position = 0, end = 0;
  while (!end) {
    refill(&in);
#pragma GCC unroll 4
    for (int look = 0; look < 4; look++) { /* of LOOK bits each, which the reader has */
      Pair pair = ac->pairs[in.bits >> (64 - LOOK)];
      int first = position + pair.onward[0], second = first + pair.onward[1];
      if (__builtin_expect(second < BLOCK - 1 && pair.length, 1)) {
        coefficients[zigzag[second]] = (int16_t)(pair.values[1] * factors[second]);
        coefficients[zigzag[first]] = (int16_t)(pair.values[0] * factors[first]);
        position = second;
        drop(&in, pair.length);
        continue;
      }
      /* A long code; or the block ends with a symbol that says so, or with its last coefficient, and what the look saw
         behind that is the next block's. */
      refill(&in);
      uint32_t entry = take_symbol(&in, ac, 0);
      if (!LENGTH(entry)) return DAMAGED;
      first = position + ONWARD(entry);
      coefficients[zigzag[first]] = (int16_t)(VALUE(entry) * factors[first]);
      end = first >= BLOCK - 1;
      if (first >= BLOCK && ONWARD(entry) != END_OF_BLOCK) return DAMAGED;
      if (first < BLOCK) position = first;
      break;
    }
  }
  *last = position;
  *reader = in;
  return DECODED;
}

/* Go to behind a block. */
INLINE int skip_block(Component *component, const Table *dc, const Table *ac, Reader *reader) {
  Reader in = *reader;
  if (read_constant(component, dc, &in)) return DAMAGED;
  int position = 0, end = 0;
  while (!end) {
    refill(&in);
#pragma GCC unroll 4
    for (int look = 0; look < 4 && !end; look++) {
      int several = ac->several[in.bits >> (64 - LOOK)], onward = several >> 5 & 127;
      if (__builtin_expect((several & 31) && position + onward < BLOCK - 1, 1)) {
        drop(&in, several & 31);
        position += onward;
        end = several >> 12;
        continue;
      }
      refill(&in);
      uint32_t entry = take_symbol(&in, ac, 0);
      if (!LENGTH(entry)) return DAMAGED;
      position += ONWARD(entry);
      end = position >= BLOCK - 1;
      if (position >= BLOCK && ONWARD(entry) != END_OF_BLOCK) return DAMAGED;
      break;
    }
  }
  *reader = in;
  return DECODED;
}

#endif
