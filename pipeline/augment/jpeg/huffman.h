/* The entropy coding of JPEG: bit reader, Huffman tables, and blocks of coefficients.

   The next LOOKUP_BITS bits are the index into a table whose entry describes the symbols in these bits. Each lookup
   must wait for the length that the previous one found, and this dependency takes most of the time. So one lookup
   describes up to two symbols where a block is decoded, and all complete symbols where a block is skipped.
   Source: ITU-T T.81, F.2.2. */

#ifndef JPEG_HUFFMAN_H
#define JPEG_HUFFMAN_H

#include <stdint.h>
#include <string.h>

/* What the functions return that can fail. */
enum { DECODED = 0, UNSUPPORTED = 1, DAMAGED = 2 };

#define INLINE static inline __attribute__((always_inline))
#define BLOCK 64
#define LOOKUP_BITS 10
#define TABLE_SIZE (1u << LOOKUP_BITS)
#define LONGEST_CODE 16

/* From zigzag order to row-major order. The end of a block counts as an advance by 64 coefficients; all positions that
   it leads to map to place 64, behind the block. */
static const uint8_t zigzag[2 * BLOCK] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45,
    38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64,
    64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64,
    64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64};

/* ---- Bits ---------------------------------------------------------------------------------------------------- */

typedef struct {
  const uint8_t *at; /* next byte, in data without stuffed bytes and with a margin behind it */
  uint64_t bits;     /* the next bit is the most significant one */
  int count;         /* number of valid bits */
} BitReader;

/* Fill up to at least 56 valid bits. The bits of a byte that fits only in part are read again by the next refill. */
INLINE void refill(BitReader *in) {
  uint64_t next;
  memcpy(&next, in->at, sizeof next);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  next = __builtin_bswap64(next);
#endif
  in->bits |= next >> in->count;
  in->at += (63 - in->count) >> 3;
  in->count |= 56;
}

INLINE void drop_bits(BitReader *in, int bits) {
  in->bits <<= bits;
  in->count -= bits;
}

/* The first byte of which no bit was consumed. */
INLINE const uint8_t *position_of(const BitReader *in) { return in->at - in->count / 8; }

/* ---- Tables -------------------------------------------------------------------------------------------------- */

/* An entry for one symbol: value (16 bits, signed) | number of value bits that lie beyond the lookup (4) |
   coefficients to advance (7) | number of bits of code and value (5). A length of 0: the code is longer than
   LOOKUP_BITS. */
#define END_OF_BLOCK 64
#define LENGTH(entry) ((int)((entry)&31))
#define ADVANCE(entry) ((int)((entry) >> 5 & 127))
#define MISSING_BITS(entry) ((int)((entry) >> 12 & 15))
#define VALUE(entry) ((int32_t)(entry) >> 16)
#define WITH_VALUE(entry, value) (((entry)&0xFFF) | (uint32_t)(value) << 16)

/* An entry for two symbols, or for one and a second without effect. A length of 0: the bits hold no complete symbol. */
typedef struct {
  int16_t values[2];
  uint8_t advance[2];
  uint8_t length;
} Pair;

/* An entry for all complete symbols: end of block (1 bit) | coefficients to advance (8) | length (5). A code of one bit
   for 16 zeros advances by 160 coefficients in a lookup. */
#define SKIP(length, advance, end) ((uint16_t)((end) << 13 | (advance) << 5 | (length)))
#define SKIP_LENGTH(skip) ((skip) & 31)
#define SKIP_ADVANCE(skip) ((skip) >> 5 & 255)
#define SKIP_END(skip) ((skip) >> 13)
_Static_assert(16 * LOOKUP_BITS < 256, "the advance of a lookup must fit into its 8 bits");

typedef struct {
  int defined;
  uint32_t single[TABLE_SIZE];
  Pair pairs[TABLE_SIZE];
  uint16_t skips[TABLE_SIZE];        /* all complete symbols, see SKIP */
  int32_t largest[LONGEST_CODE + 1]; /* largest code of each length, -1 for none */
  int32_t offset[LONGEST_CODE + 1];  /* position of a code's symbol minus the code, for each length */
  uint8_t symbols[256];
} Table;

/* EXTEND of T.81, F.2.2.1: the signed value of `bits` value bits; those that begin with 0 are negative. */
INLINE int extend(int value, int bits) { return value < 1 << (bits - 1) ? value - (1 << bits) + 1 : value; }

/* The entry of a symbol whose value bits were not seen. */
INLINE uint32_t entry_of(int symbol, int length, int is_dc) {
  int run = is_dc ? 0 : symbol >> 4, bits = symbol & 15;
  int advance = is_dc || bits ? run + 1 : run == 15 ? 16 : END_OF_BLOCK;
  return (uint32_t)(bits << 12 | advance << 5 | (length + bits));
}

/* Fill `pairs` and `skips` from `single`. */
static void fill_multi_symbol_tables(Table *table) {
  for (unsigned seen = 0; seen < TABLE_SIZE; seen++) {
    uint32_t first = table->single[seen];
    int whole = LENGTH(first) && LENGTH(first) <= LOOKUP_BITS;
    uint32_t second = whole ? table->single[seen << LENGTH(first) & (TABLE_SIZE - 1)] : 0;
    int both = LENGTH(second) && LENGTH(first) + LENGTH(second) <= LOOKUP_BITS && ADVANCE(first) != END_OF_BLOCK;
    table->pairs[seen] = (Pair){
        .values = {(int16_t)VALUE(first), both ? (int16_t)VALUE(second) : 0},
        .advance = {(uint8_t)ADVANCE(first), both ? (uint8_t)ADVANCE(second) : 0},
        .length = whole ? (uint8_t)(LENGTH(first) + (both ? LENGTH(second) : 0)) : 0,
    };
    int length = 0, advance = 0, end = 0;
    while (!end) {
      uint32_t next = table->single[seen << length & (TABLE_SIZE - 1)];
      if (!LENGTH(next) || length + LENGTH(next) > LOOKUP_BITS) break;
      length += LENGTH(next);
      end = ADVANCE(next) == END_OF_BLOCK;
      advance += end ? 0 : ADVANCE(next);
    }
    table->skips[seen] = SKIP(length, advance, end);
  }
}

/* Build a table from the number of codes of each length (`counts`, 16 of them) and the `number` symbols. */
static int build_table(Table *table, const uint8_t *counts, const uint8_t *symbols, int number, int is_dc) {
  table->defined = 0;
  memset(table->single, 0, sizeof table->single);
  memset(table->symbols, 0, sizeof table->symbols);
  memcpy(table->symbols, symbols, number);
  int code = 0, position = 0;
  for (int length = 1; length <= LONGEST_CODE; length++, code <<= 1) {
    table->offset[length] = position - code;
    if (code + counts[length - 1] > 1 << length) return DAMAGED;
    for (int i = 0; i < counts[length - 1]; i++, code++, position++) {
      if (is_dc && symbols[position] > 11) return UNSUPPORTED;
      if (length > LOOKUP_BITS) continue;
      uint32_t entry = entry_of(symbols[position], length, is_dc);
      int bits = MISSING_BITS(entry), behind = LOOKUP_BITS - length;
      for (int rest = 0; rest < 1 << behind; rest++) {
        int seen = bits && bits <= behind;
        table->single[(code << behind) + rest] =
            seen ? WITH_VALUE(entry, extend(rest >> (behind - bits), bits)) : entry;
      }
    }
    table->largest[length] = counts[length - 1] ? code - 1 : -1;
  }
  if (!is_dc) fill_multi_symbol_tables(table);
  table->defined = 1;
  return DECODED;
}

/* The entry of a code longer than LOOKUP_BITS; 0 if no code matches. */
static uint32_t long_code_entry(const Table *table, const BitReader *in, int is_dc) {
  for (int length = LOOKUP_BITS + 1; length <= LONGEST_CODE; length++) {
    int code = (int)(in->bits >> (64 - length));
    if (code <= table->largest[length]) {
      return entry_of(table->symbols[(code + table->offset[length]) & 255], length, is_dc);
    }
  }
  return 0;
}

/* Consume one symbol with its value, at most 27 bits together; the entry's length is 0 if no code matches. */
INLINE uint32_t take_symbol(BitReader *in, const Table *table, int is_dc) {
  uint32_t entry = table->single[in->bits >> (64 - LOOKUP_BITS)];
  if (__builtin_expect(!LENGTH(entry), 0)) entry = long_code_entry(table, in, is_dc);
  int bits = MISSING_BITS(entry), length = LENGTH(entry);
  if (bits) entry = WITH_VALUE(entry, extend((int)(in->bits << (length - bits) >> (64 - bits)), bits));
  drop_bits(in, length);
  return entry;
}

/* ---- Blocks -------------------------------------------------------------------------------------------------- */

typedef struct {
  int horizontal, vertical; /* sampling factors: blocks in an MCU */
  int factors;              /* index of its quantisation table */
  int dc, ac;               /* indices of its Huffman tables */
  uint32_t dc_predictor;    /* DC coefficient of the previous block, modulo 2^32: damaged data may overflow */
} Component;

/* Add the next DC difference to the component's predictor. */
INLINE int read_dc(Component *component, const Table *table, BitReader *in) {
  refill(in);
  uint32_t entry = take_symbol(in, table, 1);
  component->dc_predictor += (uint32_t)VALUE(entry);
  return LENGTH(entry) ? DECODED : DAMAGED;
}

/* Read a block and dequantise it. `factors` are in zigzag order, followed by 64 zeros. `coefficients` are written in
   row-major order and have a 65th place, for the end of the block. `*last` is the zigzag position of the last coded
   coefficient, 0 if that is the DC coefficient. */
INLINE int read_block(Component *component, const Table *dc, const Table *ac, const uint16_t *factors,
                      BitReader *reader, int16_t *coefficients, int *last) {
  BitReader in = *reader;
  if (read_dc(component, dc, &in)) return DAMAGED;
  memset(coefficients, 0, BLOCK * sizeof *coefficients);
  coefficients[0] = (int16_t)(component->dc_predictor * factors[0]);
  int position = 0, end = 0;
  while (!end) {
    refill(&in);
#pragma GCC unroll 4
    for (int lookup = 0; lookup < 4; lookup++) { /* they take at most 40 of the 56 bits */
      Pair pair = ac->pairs[in.bits >> (64 - LOOKUP_BITS)];
      int first = position + pair.advance[0], second = first + pair.advance[1];
      if (__builtin_expect(second < BLOCK - 1 && pair.length, 1)) {
        coefficients[zigzag[second]] = (int16_t)(pair.values[1] * factors[second]);
        coefficients[zigzag[first]] = (int16_t)(pair.values[0] * factors[first]);
        position = second;
        drop_bits(&in, pair.length);
        continue;
      }
      /* A long code; or the block ends, by the end-of-block symbol or by its last coefficient, and the second symbol of
         the pair belongs to the next block. */
      refill(&in);
      uint32_t entry = take_symbol(&in, ac, 0);
      if (!LENGTH(entry)) return DAMAGED;
      first = position + ADVANCE(entry);
      coefficients[zigzag[first]] = (int16_t)(VALUE(entry) * factors[first]);
      end = first >= BLOCK - 1;
      if (first >= BLOCK && ADVANCE(entry) != END_OF_BLOCK) return DAMAGED;
      if (first < BLOCK) position = first;
      break;
    }
  }
  *last = position;
  *reader = in;
  return DECODED;
}

/* Consume a block without keeping its AC coefficients. */
INLINE int skip_block(Component *component, const Table *dc, const Table *ac, BitReader *reader) {
  BitReader in = *reader;
  if (read_dc(component, dc, &in)) return DAMAGED;
  int position = 0, end = 0;
  while (!end) {
    refill(&in);
#pragma GCC unroll 4
    for (int lookup = 0; lookup < 4 && !end; lookup++) {
      int skip = ac->skips[in.bits >> (64 - LOOKUP_BITS)];
      if (__builtin_expect(SKIP_LENGTH(skip) && position + SKIP_ADVANCE(skip) < BLOCK - 1, 1)) {
        drop_bits(&in, SKIP_LENGTH(skip));
        position += SKIP_ADVANCE(skip);
        end = SKIP_END(skip);
        continue;
      }
      refill(&in);
      uint32_t entry = take_symbol(&in, ac, 0);
      if (!LENGTH(entry)) return DAMAGED;
      position += ADVANCE(entry);
      end = position >= BLOCK - 1;
      if (position >= BLOCK && ADVANCE(entry) != END_OF_BLOCK) return DAMAGED;
      break;
    }
  }
  *reader = in;
  return DECODED;
}

#endif
