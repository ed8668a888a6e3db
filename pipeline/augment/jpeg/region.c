/* Decode a rectangle of a JPEG. Blocks outside of it are parsed only as far as needed to find the next block.

   The pixels are bit for bit those of libjpeg-turbo with its accurate integer DCT (JDCT_ISLOW) and without "fancy
   upsampling": chroma samples are repeated, not interpolated. The file must be an undamaged sequential Huffman-coded
   JPEG of 8 bits with three components in one scan, and chroma sampling 4:4:4, 4:2:2 or 4:2:0; the caller decodes all
   others in another way. Source of the format: ITU-T T.81, annex B. */

#include <stdlib.h>

#include "huffman.h"
#include "pixels.h"

#define COMPONENTS 3
#define TABLES 4
/* Number of zero bytes behind the coded data: more than the reader can consume in one MCU of damaged blocks. */
#define MARGIN 4096

typedef struct {
  const uint8_t *scan, *end; /* coded data as in the file, with stuffed bytes and restart markers */
  int width, height;
  int restart_interval; /* in MCUs, 0 for none */
  Component components[COMPONENTS];
  Table dc[TABLES], ac[TABLES];
  uint16_t factors[TABLES][2 * BLOCK]; /* quantisation tables in zigzag order, each followed by 64 zeros */
  int factors_defined[TABLES];
} Image;

/* ---- Markers ------------------------------------------------------------------------------------------------- */

/* Each function reads the body of a marker segment, [at, end), and returns DECODED, UNSUPPORTED or DAMAGED. */

/* DHT: Huffman tables. */
static int read_huffman(Image *image, const uint8_t *at, const uint8_t *end) {
  while (end - at > 17) {
    int kind = at[0] >> 4, slot = at[0] & 15, number = 0;
    for (int i = 1; i <= 16; i++) number += at[i];
    if (kind > 1 || slot >= TABLES || number > 256 || end - at - 17 < number) return DAMAGED;
    int problem = build_table(kind == 0 ? &image->dc[slot] : &image->ac[slot], at + 1, at + 17, number, kind == 0);
    if (problem) return problem;
    at += 17 + number;
  }
  return at == end ? DECODED : DAMAGED;
}

/* DQT: quantisation tables. */
static int read_quantisation(Image *image, const uint8_t *at, const uint8_t *end) {
  while (end - at > BLOCK) {
    int is_16_bit = at[0] >> 4, slot = at[0] & 15;
    if (is_16_bit > 1 || slot >= TABLES || end - at - 1 < BLOCK << is_16_bit) return DAMAGED;
    at++;
    for (int i = 0; i < BLOCK; i++, at += 1 + is_16_bit) {
      image->factors[slot][i] = is_16_bit ? (uint16_t)(at[0] << 8 | at[1]) : at[0];
    }
    image->factors_defined[slot] = 1;
  }
  return at == end ? DECODED : DAMAGED;
}

/* SOF0 or SOF1: size and components. */
static int read_frame(Image *image, const uint8_t *at, const uint8_t *end, uint8_t *ids) {
  if (end - at < 6 || at[0] != 8 || at[5] != COMPONENTS || end - at < 6 + 3 * COMPONENTS) return UNSUPPORTED;
  image->height = at[1] << 8 | at[2];
  image->width = at[3] << 8 | at[4];
  for (int i = 0; i < COMPONENTS; i++) {
    const uint8_t *entry = at + 6 + 3 * i;
    ids[i] = entry[0];
    Component *component = &image->components[i];
    component->horizontal = entry[1] >> 4;
    component->vertical = entry[1] & 15;
    component->factors = entry[2];
    if (entry[2] >= TABLES || (i && entry[1] != 0x11)) return UNSUPPORTED;
  }
  int luma = at[7];
  return luma == 0x11 || luma == 0x21 || luma == 0x22 ? DECODED : UNSUPPORTED;
}

/* SOS: the scan must hold all three components. */
static int read_scan(Image *image, const uint8_t *at, const uint8_t *end, const uint8_t *ids) {
  if (end - at != 4 + 2 * COMPONENTS || at[0] != COMPONENTS) return UNSUPPORTED;
  for (int i = 0; i < COMPONENTS; i++) {
    Component *component = &image->components[i];
    component->dc = at[2 + 2 * i] >> 4;
    component->ac = at[2 + 2 * i] & 15;
    if (at[1 + 2 * i] != ids[i] || component->dc >= TABLES || component->ac >= TABLES) return UNSUPPORTED;
    if (!image->dc[component->dc].defined || !image->ac[component->ac].defined) return DAMAGED;
    if (!image->factors_defined[component->factors]) return DAMAGED;
  }
  const uint8_t *spectrum = at + 1 + 2 * COMPONENTS;
  return spectrum[0] == 0 && spectrum[1] == 63 && spectrum[2] == 0 ? DECODED : UNSUPPORTED;
}

/* Read all markers up to the coded data. */
static int read_header(Image *image, const uint8_t *data, size_t size) {
  const uint8_t *at = data + 2, *end = data + size;
  uint8_t ids[COMPONENTS];
  int has_frame = 0;
  if (size < 4 || data[0] != 0xFF || data[1] != 0xD8) return UNSUPPORTED;
  while (end - at >= 4) {
    if (at[0] != 0xFF) return DAMAGED;
    int marker = at[1], length = at[2] << 8 | at[3];
    if (marker == 0xFF) {
      at++;
      continue;
    }
    const uint8_t *body = at + 4, *next = at + 2 + length;
    if (length < 2 || next > end) return DAMAGED;
    int problem = DECODED;
    if (marker == 0xC0 || marker == 0xC1) {
      problem = has_frame ? DAMAGED : read_frame(image, body, next, ids);
      has_frame = 1;
    } else if (marker == 0xC4) {
      problem = read_huffman(image, body, next);
    } else if (marker == 0xDB) {
      problem = read_quantisation(image, body, next);
    } else if (marker == 0xDD) {
      if (length != 4) return DAMAGED;
      image->restart_interval = body[0] << 8 | body[1];
    } else if (marker == 0xDA) {
      if (!has_frame) return DAMAGED;
      image->scan = next;
      image->end = end;
      return read_scan(image, body, next, ids);
    } else if (marker < 0xE0 || (marker > 0xEF && marker != 0xFE)) {
      return UNSUPPORTED; /* progressive, arithmetic, hierarchical, lossless */
    }
    if (problem) return problem;
    at = next;
  }
  return DAMAGED;
}

/* ---- Decoding ------------------------------------------------------------------------------------------------ */

/* Memory that a thread reuses from image to image. */
typedef struct {
  void *memory;
  size_t size;
} Scratch;

/* The memory, of at least `size` bytes and with undefined content; NULL if there is none. */
static void *ensure_size(Scratch *scratch, size_t size) {
  if (scratch->size < size) {
    free(scratch->memory);
    scratch->memory = malloc(size);
    scratch->size = scratch->memory == NULL ? 0 : size;
  }
  return scratch->memory;
}

/* The coded data of one restart interval, or of the whole scan, without stuffed bytes, followed by MARGIN zeros. */
typedef struct {
  uint8_t *data, *end;
  const uint8_t *next; /* end of the interval in the file */
} Interval;

/* Copy the coded data from `next` to the next marker, and remove the zero bytes that are stuffed behind each 0xFF. */
static void unstuff(Interval *interval, const uint8_t *end) {
  const uint8_t *at = interval->next;
  uint8_t *out = interval->data;
  while (at < end) {
    const uint8_t *marker = memchr(at, 0xFF, end - at);
    size_t length = (marker == NULL ? end : marker) - at;
    memcpy(out, at, length);
    out += length;
    at += length;
    if (marker == NULL || end - marker < 2 || marker[1] != 0) break;
    *out++ = 0xFF;
    at += 2;
  }
  memset(out, 0, MARGIN);
  interval->end = out;
  interval->next = at;
}

/* Continue behind the restart marker, which must come next and have the given number. */
static int read_restart_marker(Image *image, Interval *interval, BitReader *in, int number) {
  if (position_of(in) > interval->end) return DAMAGED;
  const uint8_t *marker = interval->next;
  if (image->end - marker < 2 || marker[0] != 0xFF || marker[1] != 0xD0 + (number & 7)) return DAMAGED;
  interval->next += 2;
  unstuff(interval, image->end);
  *in = (BitReader){.at = interval->data};
  for (int i = 0; i < COMPONENTS; i++) image->components[i].dc_predictor = 0;
  return DECODED;
}

typedef struct {
  int top, left, height, width;
} Box;

/* Repeat each of `width` samples. */
static void double_row(const uint8_t *from, uint8_t *to, int width) {
  for (int i = 0; i < width; i++) to[2 * i] = to[2 * i + 1] = from[i];
}

/* Read a row of MCUs: decode columns [first, last] into the planes of the components, and skip the others. */
static int read_row(Image *image, Interval *interval, BitReader *reader, const PixelFunctions *pixels, int row,
                    int columns, int first, int last, uint8_t **planes, ptrdiff_t stride) {
  BitReader in = *reader;
  for (int column = 0; column < columns; column++) {
    int number = row * columns + column;
    if (image->restart_interval && number && number % image->restart_interval == 0) {
      if (read_restart_marker(image, interval, &in, number / image->restart_interval - 1)) return DAMAGED;
    }
    for (int i = 0; i < COMPONENTS; i++) {
      Component *component = &image->components[i];
      const Table *dc = &image->dc[component->dc], *ac = &image->ac[component->ac];
      for (int block = 0; block < component->horizontal * component->vertical; block++) {
        if (column < first || column > last) {
          if (skip_block(component, dc, ac, &in)) return DAMAGED;
          continue;
        }
        int across = block % component->horizontal, down = block / component->horizontal;
        uint8_t *out = planes[i] + 8 * (down * stride + (column - first) * component->horizontal + across);
        int16_t coefficients[BLOCK + 1] __attribute__((aligned(32)));
        int filled;
        const uint16_t *factors = image->factors[component->factors];
        if (read_block(component, dc, ac, factors, &in, coefficients, &filled)) return DAMAGED;
        if (filled) {
          pixels->put_block(coefficients, out, stride);
        } else {
          put_dc_block(coefficients[0], out, stride);
        }
      }
    }
    if (position_of(&in) > interval->end) return DAMAGED;
  }
  *reader = in;
  return DECODED;
}

/* Decode a box row by row of MCUs, up to its last row. */
static int read_box(Image *image, Box box, const PixelFunctions *pixels, uint8_t *out) {
  static __thread Scratch coded, decoded;
  int across = image->components[0].horizontal, down = image->components[0].vertical;
  int mcu_width = 8 * across, mcu_height = 8 * down, columns = (image->width + mcu_width - 1) / mcu_width;
  int first = box.left / mcu_width, last = (box.left + box.width - 1) / mcu_width;
  int bottom = box.top + box.height;
  ptrdiff_t stride = (ptrdiff_t)(last - first + 1) * mcu_width;
  uint8_t *memory = ensure_size(&decoded, (size_t)stride * (3 * mcu_height + 2));
  Interval interval = {.data = ensure_size(&coded, image->end - image->scan + MARGIN), .next = image->scan};
  if (memory == NULL || interval.data == NULL) return UNSUPPORTED;
  unstuff(&interval, image->end);
  BitReader in = {.at = interval.data};
  uint8_t *planes[COMPONENTS] = {memory, memory + stride * mcu_height, memory + 2 * stride * mcu_height};
  uint8_t *doubled[2] = {memory + 3 * stride * mcu_height, memory + stride * (3 * mcu_height + 1)};
  for (int row = 0; row * mcu_height < bottom; row++) {
    int begin = row * mcu_height, wanted = begin + mcu_height > box.top;
    if (read_row(image, &interval, &in, pixels, row, columns, wanted ? first : columns, last, planes, stride)) {
      return DAMAGED;
    }
    for (int y = begin > box.top ? begin : box.top; y < begin + mcu_height && y < bottom; y++) {
      const uint8_t *colour[2];
      for (int i = 0; i < 2; i++) {
        colour[i] = planes[1 + i] + (y - begin) / down * stride;
        if (across == 2) {
          double_row(colour[i], doubled[i], (int)stride / 2);
          colour[i] = doubled[i];
        }
      }
      int from = box.left - first * mcu_width;
      pixels->put_colours(planes[0] + (y - begin) * stride + from, colour[0] + from, colour[1] + from,
                          out + (ptrdiff_t)(y - box.top) * 3 * box.width, box.width);
    }
  }
  return DECODED;
}

/* Decode rows [top, top + height) and columns [left, left + width) of `data` into `out`, RGB, uint8
   [height, width, 3]. Return 0; anything else means that another decoder has to decode the file. `portable` forbids
   AVX2. */
int jpeg_region(const uint8_t *data, size_t size, int top, int left, int height, int width, uint8_t *out,
                int portable) {
  static __thread Scratch kept;
  Image *image = ensure_size(&kept, sizeof *image);
  if (image == NULL) return UNSUPPORTED;
  image->restart_interval = 0;
  memset(image->components, 0, sizeof image->components);
  memset(image->factors, 0, sizeof image->factors);
  memset(image->factors_defined, 0, sizeof image->factors_defined);
  for (int i = 0; i < TABLES; i++) image->dc[i].defined = image->ac[i].defined = 0;
  int problem = read_header(image, data, size);
  if (problem) return problem;
  if (top < 0 || left < 0 || height < 1 || width < 1) return UNSUPPORTED;
  if (height > image->height - top || width > image->width - left) return UNSUPPORTED;
  PixelFunctions pixels = choose_pixel_functions(portable);
  return read_box(image, (Box){top, left, height, width}, &pixels, out);
}
