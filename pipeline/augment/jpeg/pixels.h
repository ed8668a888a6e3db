/* From coefficients to pixels: inverse DCT and colour conversion, bit for bit as libjpeg-turbo computes them.

   The inverse DCT is libjpeg's accurate integer one (JDCT_ISLOW), after Loeffler, Ligtenberg and Moschytz, "Practical
   fast 1-D DCT algorithms with 11 multiplications", ICASSP 1989: first along columns, then along rows. Its constants
   have 13 fractional bits, and the intermediate results keep 2. The colour conversion is that of JFIF 1.02 with 16
   fractional bits. Each exists in portable C and for x86 with AVX2, which is several times as fast. */

#ifndef JPEG_PIXELS_H
#define JPEG_PIXELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FACTOR_BITS 13
#define KEPT_BITS 2
#define COLUMN_SHIFT (FACTOR_BITS - KEPT_BITS)
#define ROW_SHIFT (FACTOR_BITS + KEPT_BITS + 3)

static inline uint8_t clamp(int value) { return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value; }

/* ---- Portable C ---------------------------------------------------------------------------------------------- */

/* One-dimensional inverse DCT of eight numbers that lie `step` apart, in place. */
static void transform_line(int32_t *line, int step, int shift) {
#define AT(i) line[(i)*step]
  int32_t z1 = (AT(2) + AT(6)) * 4433, e2 = z1 - AT(6) * 15137, e3 = z1 + AT(2) * 6270;
  int32_t e0 = (AT(0) + AT(4)) * (1 << FACTOR_BITS), e1 = (AT(0) - AT(4)) * (1 << FACTOR_BITS);
  int32_t even[4] = {e0 + e3, e1 + e2, e1 - e2, e0 - e3};
  int32_t z5 = (AT(7) + AT(3) + AT(5) + AT(1)) * 9633;
  int32_t y1 = (AT(7) + AT(1)) * -7373, y2 = (AT(5) + AT(3)) * -20995;
  int32_t y3 = (AT(7) + AT(3)) * -16069 + z5, y4 = (AT(5) + AT(1)) * -3196 + z5;
  int32_t odd[4] = {AT(1) * 12299 + y1 + y4, AT(3) * 25172 + y2 + y3, AT(5) * 16819 + y2 + y4, AT(7) * 2446 + y1 + y3};
  for (int i = 0; i < 4; i++) {
    AT(i) = (even[i] + odd[i] + (1 << (shift - 1))) >> shift;
    AT(7 - i) = (even[i] - odd[i] + (1 << (shift - 1))) >> shift;
  }
#undef AT
}

/* Write the 8 x 8 pixels of a block, rows `stride` apart, from 64 dequantised coefficients. */
static void put_block_portable(const int16_t *coefficients, uint8_t *out, ptrdiff_t stride) {
  int32_t lines[64];
  for (int i = 0; i < 64; i++) lines[i] = coefficients[i];
  for (int i = 0; i < 8; i++) transform_line(lines + i, 8, COLUMN_SHIFT);
  for (int i = 0; i < 8; i++) transform_line(lines + 8 * i, 1, ROW_SHIFT);
  for (int i = 0; i < 64; i++) out[i / 8 * stride + i % 8] = clamp(lines[i] + 128);
}

/* The same for a block whose AC coefficients are zero. */
static void put_dc_block(int coefficient, uint8_t *out, ptrdiff_t stride) {
  int value = clamp((((coefficient * (1 << KEPT_BITS)) + (1 << (KEPT_BITS + 2))) >> (KEPT_BITS + 3)) + 128);
  for (int i = 0; i < 8; i++) memset(out + i * stride, value, 8);
}

/* Convert `width` pixels from Y, Cb and Cr (`luma`, `blue`, `red`) to interleaved RGB. */
static void put_colours_portable(const uint8_t *luma, const uint8_t *blue, const uint8_t *red, uint8_t *out,
                                 int width) {
  for (int i = 0; i < width; i++) {
    int y = luma[i], cb = blue[i] - 128, cr = red[i] - 128;
    out[3 * i] = clamp(y + ((91881 * cr + 32768) >> 16));
    out[3 * i + 1] = clamp(y + ((-22554 * cb - 46802 * cr + 32768) >> 16));
    out[3 * i + 2] = clamp(y + ((116130 * cb + 32768) >> 16));
  }
}

/* ---- x86 with AVX2 --------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define AVX2_INLINE static inline __attribute__((target("avx2"), always_inline))
#define ADD _mm256_add_epi32
#define SUBTRACT _mm256_sub_epi32

/* Interleave two rows of eight 16-bit numbers, for SUM_OF_PRODUCTS. */
#define INTERLEAVE(a, b) _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b))
/* first row * a + second row * b: eight 32-bit numbers. */
#define SUM_OF_PRODUCTS(rows, a, b) \
  _mm256_madd_epi16(rows, _mm256_set1_epi32((int)((uint32_t)(uint16_t)(int16_t)(b) << 16 | (uint16_t)(int16_t)(a))))

/* Round (even + odd) and (even - odd) to rows of eight 16-bit numbers. */
AVX2_INLINE void put_sum_and_difference(__m256i even, __m256i odd, int shift, __m128i *above, __m128i *below) {
  __m256i sum = _mm256_srai_epi32(ADD(even, odd), shift), difference = _mm256_srai_epi32(SUBTRACT(even, odd), shift);
  __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(sum, difference), 0xD8);
  *above = _mm256_castsi256_si128(both);
  *below = _mm256_extracti128_si256(both, 1);
}

/* `transform_line` for the eight columns of a block at once. */
AVX2_INLINE void transform_columns(__m128i *row, int shift) {
  __m256i half = _mm256_set1_epi32(1 << (shift - 1)), one = INTERLEAVE(row[0], row[4]);
  __m256i two = INTERLEAVE(row[2], row[6]), outer = INTERLEAVE(row[7], row[1]), inner = INTERLEAVE(row[5], row[3]);
  __m256i sums = INTERLEAVE(_mm_add_epi16(row[7], row[3]), _mm_add_epi16(row[5], row[1]));
  __m256i e3 = SUM_OF_PRODUCTS(two, 4433 + 6270, 4433), e2 = SUM_OF_PRODUCTS(two, 4433, 4433 - 15137);
  __m256i e0 = ADD(SUM_OF_PRODUCTS(one, 1 << FACTOR_BITS, 1 << FACTOR_BITS), half);
  __m256i e1 = ADD(SUM_OF_PRODUCTS(one, 1 << FACTOR_BITS, -(1 << FACTOR_BITS)), half);
  __m256i y3 = SUM_OF_PRODUCTS(sums, 9633 - 16069, 9633), y4 = SUM_OF_PRODUCTS(sums, 9633, 9633 - 3196);
  __m256i o0 = ADD(SUM_OF_PRODUCTS(outer, 2446 - 7373, -7373), y3);
  __m256i o3 = ADD(SUM_OF_PRODUCTS(outer, -7373, 12299 - 7373), y4);
  __m256i o1 = ADD(SUM_OF_PRODUCTS(inner, 16819 - 20995, -20995), y4);
  __m256i o2 = ADD(SUM_OF_PRODUCTS(inner, -20995, 25172 - 20995), y3);
  put_sum_and_difference(ADD(e0, e3), o3, shift, &row[0], &row[7]);
  put_sum_and_difference(ADD(e1, e2), o2, shift, &row[1], &row[6]);
  put_sum_and_difference(SUBTRACT(e1, e2), o1, shift, &row[2], &row[5]);
  put_sum_and_difference(SUBTRACT(e0, e3), o0, shift, &row[3], &row[4]);
}

/* Transpose a block of 8 x 8 16-bit numbers. */
AVX2_INLINE void transpose(__m128i *row) {
  for (int round = 0; round < 3; round++) {
    __m128i mixed[8];
    for (int i = 0; i < 4; i++) {
      mixed[2 * i] = _mm_unpacklo_epi16(row[i], row[i + 4]);
      mixed[2 * i + 1] = _mm_unpackhi_epi16(row[i], row[i + 4]);
    }
    memcpy(row, mixed, sizeof mixed);
  }
}

AVX2 static void put_block_avx2(const int16_t *coefficients, uint8_t *out, ptrdiff_t stride) {
  __m128i row[8];
  for (int i = 0; i < 8; i++) row[i] = _mm_loadu_si128((const void *)(coefficients + 8 * i));
  transform_columns(row, COLUMN_SHIFT);
  transpose(row);
  transform_columns(row, ROW_SHIFT);
  transpose(row);
  for (int i = 0; i < 8; i += 2) {
    __m128i two = _mm_xor_si128(_mm_packs_epi16(row[i], row[i + 1]), _mm_set1_epi8(-128));
    _mm_storel_epi64((void *)(out + i * stride), two);
    _mm_storeh_pd((void *)(out + (i + 1) * stride), _mm_castsi128_pd(two));
  }
}

AVX2_INLINE __m256i widen(const uint8_t *from) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)from)); }

/* round(difference * factor / 2^16), exact. */
AVX2_INLINE __m256i scale_and_round(__m256i difference, int factor) {
  __m256i twice = _mm256_mulhi_epi16(_mm256_add_epi16(difference, difference), _mm256_set1_epi16((int16_t)factor));
  return _mm256_srai_epi16(_mm256_add_epi16(twice, _mm256_set1_epi16(1)), 1);
}

/* Clamp sixteen 16-bit numbers to 0 … 255 and pack them into bytes. */
AVX2_INLINE __m128i pack_clamped(__m256i values) {
  return _mm_packus_epi16(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
}

/* Shuffle masks that interleave RGB: the pixel whose byte of a colour stands at place n, or 0x80 for another colour's
   place. */
#define PICK(n, colour) ((n) % 3 == (colour) ? (n) / 3 : 0x80)
#define PICK4(n, colour) PICK(n, colour), PICK((n) + 1, colour), PICK((n) + 2, colour), PICK((n) + 3, colour)
#define PICK16(n, colour) \
  { PICK4(n, colour), PICK4((n) + 4, colour), PICK4((n) + 8, colour), PICK4((n) + 12, colour) }
#define PICK_COLOURS(n) \
  { PICK16(n, 0), PICK16(n, 1), PICK16(n, 2) }
static const uint8_t picks[3][3][16] = {PICK_COLOURS(0), PICK_COLOURS(16), PICK_COLOURS(32)};

AVX2 static void put_colours_avx2(const uint8_t *luma, const uint8_t *blue, const uint8_t *red, uint8_t *out,
                                  int width) {
  int done = 0;
  for (; done + 16 <= width; done += 16, out += 48) {
    __m256i y = widen(luma + done), middle = _mm256_set1_epi16(128);
    __m256i cb = _mm256_sub_epi16(widen(blue + done), middle), cr = _mm256_sub_epi16(widen(red + done), middle);
    /* 1.402 = 1 + 0.402, 1.772 = 2 - 0.228, -0.714 = 0.286 - 1: the whole parts are added separately, because the
       factors would not fit into signed 16 bits. */
    __m256i r = _mm256_add_epi16(_mm256_add_epi16(y, cr), scale_and_round(cr, 26345));
    __m256i b = _mm256_add_epi16(_mm256_add_epi16(y, _mm256_add_epi16(cb, cb)), scale_and_round(cb, -14942));
    __m256i half = _mm256_set1_epi32(32768);
    __m256i low = SUM_OF_PRODUCTS(_mm256_unpacklo_epi16(cb, cr), -22554, 18734);
    __m256i high = SUM_OF_PRODUCTS(_mm256_unpackhi_epi16(cb, cr), -22554, 18734);
    low = _mm256_srai_epi32(ADD(low, half), 16), high = _mm256_srai_epi32(ADD(high, half), 16);
    __m256i g = _mm256_add_epi16(_mm256_sub_epi16(y, cr), _mm256_packs_epi32(low, high));
    __m128i colours[3] = {pack_clamped(r), pack_clamped(g), pack_clamped(b)};
    for (int part = 0; part < 3; part++) {
      __m128i mixed = _mm_setzero_si128();
      for (int i = 0; i < 3; i++) {
        __m128i pick = _mm_loadu_si128((const void *)picks[part][i]);
        mixed = _mm_or_si128(mixed, _mm_shuffle_epi8(colours[i], pick));
      }
      _mm_storeu_si128((void *)(out + 16 * part), mixed);
    }
  }
  put_colours_portable(luma + done, blue + done, red + done, out, width - done);
}
#endif

/* ---- Choice for this processor ----------------------------------------------------------------------------------- */

typedef struct {
  void (*put_block)(const int16_t *coefficients, uint8_t *out, ptrdiff_t stride);
  void (*put_colours)(const uint8_t *luma, const uint8_t *blue, const uint8_t *red, uint8_t *out, int width);
} PixelFunctions;

/* The AVX2 functions where the processor has AVX2, unless `portable` asks for the others. */
static PixelFunctions choose_pixel_functions(int portable) {
#if defined(__x86_64__)
  if (!portable && __builtin_cpu_supports("avx2")) return (PixelFunctions){put_block_avx2, put_colours_avx2};
#endif
  (void)portable;
  return (PixelFunctions){put_block_portable, put_colours_portable};
}

#endif
