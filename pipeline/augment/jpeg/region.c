/* Decodes a rectangle of a JPEG, and of all else only as much as it takes to find the next block.

   The pixels are bit for bit those of libjpeg-turbo with its accurate transform and with colour samples repeated
   rather than smoothed. Decoded are sequential JPEGs of 8 bits with three components in one scan, sampled 1x1, 2x1 or
   2x2, and whole; for all others the caller has another decoder. Source of the format: ITU-T T.81, annex B. */

#include <stdlib.h>

#include "huffman.h"
#include "pixels.h"

#define COMPONENTS 3
#define TABLES 4
/* Zeros behind the coded data, more than an MCU of damaged blocks can take. */
#define MARGIN 4096

typedef struct {
  const uint8_t *scan, *end; /* coded data, as it is in the file */
  int width, height, restart;
  Component components[COMPONENTS];
  Table dc[TABLES], ac[TABLES];
  uint16_t factors[TABLES][2 * BLOCK]; /* in zigzag order, and zeros */
  int factors_there[TABLES];
} Image;

/* ---- Markers ------------------------------------------------------------------------------------------------- */

static int read_huffman(Image *image, const uint8_t *at, const uint8_t *end) {
  while (end - at > 17) {
    int kind = at[0] >> 4, slot = at[0] & 15, number = 0;
    for (int i = 1; i <= 16; i++) number += at[i];
    if (kind > 1 || slot >= TABLES || number > 256 || end - at - 17 < number) return DAMAGED;
    int problem = build(kind == 0 ? &image->dc[slot] : &image->ac[slot], at + 1, at + 17, number, kind == 0);
    if (problem) return problem;
    at += 17 + number;
  }
  return at == end ? DECODED : DAMAGED;
}

static int read_factors(Image *image, const uint8_t *at, const uint8_t *end) {
  while (end - at > BLOCK) {
    int wide = at[0] >> 4, slot = at[0] & 15;
    if (wide > 1 || slot >= TABLES || end - at - 1 < BLOCK << wide) return DAMAGED;
    at++;
    for (int i = 0; i < BLOCK; i++, at += 1 + wide) {
      image->factors[slot][i] = wide ? (uint16_t)(at[0] << 8 | at[1]) : at[0];
    }
    image->factors_there[slot] = 1;
  }
  return at == end ? DECODED : DAMAGED;
}

static int read_frame(Image *image, const uint8_t *at, const uint8_t *end, uint8_t *names) {
  if (end - at < 6 || at[0] != 8 || at[5] != COMPONENTS || end - at < 6 + 3 * COMPONENTS) return OTHER_KIND;
  image->height = at[1] << 8 | at[2];
  image->width = at[3] << 8 | at[4];
  for (int i = 0; i < COMPONENTS; i++) {
    const uint8_t *described = at + 6 + 3 * i;
    names[i] = described[0];
    Component *component = &image->components[i];
    component->horizontal = described[1] >> 4;
    component->vertical = described[1] & 15;
    component->factors = described[2];
    if (described[2] >= TABLES || (i && described[1] != 0x11)) return OTHER_KIND;
  }
  int luma = at[7];
  return luma == 0x11 || luma == 0x21 || luma == 0x22 ? DECODED : OTHER_KIND;
}

static int read_scan(Image *image, const uint8_t *at, const uint8_t *end, const uint8_t *names) {
  if (end - at != 4 + 2 * COMPONENTS || at[0] != COMPONENTS) return OTHER_KIND;
  for (int i = 0; i < COMPONENTS; i++) {
    Component *component = &image->components[i];
    component->dc = at[2 + 2 * i] >> 4;
    component->ac = at[2 + 2 * i] & 15;
    if (at[1 + 2 * i] != names[i] || component->dc >= TABLES || component->ac >= TABLES) return OTHER_KIND;
    if (!image->dc[component->dc].there || !image->ac[component->ac].there) return DAMAGED;
    if (!image->factors_there[component->factors]) return DAMAGED;
  }
  const uint8_t *spectrum = at + 1 + 2 * COMPONENTS;
  return spectrum[0] == 0 && spectrum[1] == 63 && spectrum[2] == 0 ? DECODED : OTHER_KIND;
}

/* Everything up to the first block. */
static int read_header(Image *image, const uint8_t *data, size_t size) {
  const uint8_t *at = data + 2, *end = data + size;
  uint8_t names[COMPONENTS];
  int framed = 0;
  if (size < 4 || data[0] != 0xFF || data[1] != 0xD8) return OTHER_KIND;
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
      problem = framed ? DAMAGED : read_frame(image, body, next, names);
      framed = 1;
    } else if (marker == 0xC4) {
      problem = read_huffman(image, body, next);
    } else if (marker == 0xDB) {
      problem = read_factors(image, body, next);
    } else if (marker == 0xDD) {
      if (length != 4) return DAMAGED;
      image->restart = body[0] << 8 | body[1];
    } else if (marker == 0xDA) {
      if (!framed) return DAMAGED;
      image->scan = next;
      image->end = end;
      return read_scan(image, body, next, names);
    } else if (marker < 0xE0 || (marker > 0xEF && marker != 0xFE)) {
      return OTHER_KIND; /* progressive, arithmetic, hierarchical, lossless */
    }
    if (problem) return problem;
    at = next;
  }
  return DAMAGED;
}

/* ---- The whole ----------------------------------------------------------------------------------------------- */

/* Memory that a thread keeps from image to image. */
typedef struct {
  void *memory;
  size_t size;
} Scratch;

static void *at_least(Scratch *scratch, size_t size) {
  if (scratch->size < size) {
    free(scratch->memory);
    scratch->memory = malloc(size);
    scratch->size = scratch->memory == NULL ? 0 : size;
  }
  return scratch->memory;
}

/* The coded data of one restart interval, or of all, without stuffing and with a margin of zeros. */
typedef struct {
  uint8_t *data, *end;
  const uint8_t *next; /* in the file: behind the interval */
} Interval;

static void unstuff(Interval *interval, const uint8_t *end) {
  const uint8_t *at = interval->next;
  uint8_t *out = interval->data;
  while (at < end) {
    const uint8_t *marker = memchr(at, 0xFF, end - at);
    size_t plain = (marker == NULL ? end : marker) - at;
    memcpy(out, at, plain);
    out += plain;
    at += plain;
    if (marker == NULL || end - marker < 2 || marker[1] != 0) break;
    *out++ = 0xFF;
    at += 2;
  }
  memset(out, 0, MARGIN);
  interval->end = out;
  interval->next = at;
}

/* Go on behind the restart marker that must come now. */
static int restart(Image *image, Interval *interval, Reader *in, int number) {
  if (position_of(in) > interval->end) return DAMAGED;
  const uint8_t *marker = interval->next;
  if (image->end - marker < 2 || marker[0] != 0xFF || marker[1] != 0xD0 + (number & 7)) return DAMAGED;
  interval->next += 2;
  unstuff(interval, image->end);
  *in = (Reader){.at = interval->data};
  for (int i = 0; i < COMPONENTS; i++) image->components[i].predicted = 0;
  return DECODED;
}

typedef struct {
  int top, left, height, width;
} Box;

static void double_row(const uint8_t *from, uint8_t *to, int width) {
  for (int i = 0; i < width; i++) to[2 * i] = to[2 * i + 1] = from[i];
}

/* A row of MCUs, of which columns [first, last] are put into planes and the rest is skipped. */
static int read_row(Image *image, Interval *interval, Reader *reader, const Pixels *pixels, int row, int columns,
                    int first, int last, uint8_t **planes, ptrdiff_t stride) {
  Reader in = *reader;
  for (int column = 0; column < columns; column++) {
    int number = row * columns + column;
    if (image->restart && number && number % image->restart == 0) {
      if (restart(image, interval, &in, number / image->restart - 1)) return DAMAGED;
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
          put_flat(coefficients[0], out, stride);
        }
      }
    }
    if (position_of(&in) > interval->end) return DAMAGED;
  }
  *reader = in;
  return DECODED;
}

static int read_box(Image *image, Box box, const Pixels *pixels, uint8_t *out) {
  static __thread Scratch coded, decoded;
  int across = image->components[0].horizontal, down = image->components[0].vertical;
  int wide = 8 * across, high = 8 * down, columns = (image->width + wide - 1) / wide;
  int first = box.left / wide, last = (box.left + box.width - 1) / wide;
  int bottom = box.top + box.height;
  ptrdiff_t stride = (ptrdiff_t)(last - first + 1) * wide;
  uint8_t *memory = at_least(&decoded, (size_t)stride * (3 * high + 2));
  Interval interval = {.data = at_least(&coded, image->end - image->scan + MARGIN), .next = image->scan};
  if (memory == NULL || interval.data == NULL) return OTHER_KIND;
  unstuff(&interval, image->end);
  Reader in = {.at = interval.data};
  uint8_t *planes[COMPONENTS] = {memory, memory + stride * high, memory + 2 * stride * high};
  uint8_t *doubled[2] = {memory + 3 * stride * high, memory + stride * (3 * high + 1)};
  for (int row = 0; row * high < bottom; row++) {
    int begin = row * high, wanted = begin + high > box.top;
    if (read_row(image, &interval, &in, pixels, row, columns, wanted ? first : columns, last, planes, stride)) {
      return DAMAGED;
    }
    for (int y = begin > box.top ? begin : box.top; y < begin + high && y < bottom; y++) {
      const uint8_t *colour[2];
      for (int i = 0; i < 2; i++) {
        colour[i] = planes[1 + i] + (y - begin) / down * stride;
        if (across == 2) {
          double_row(colour[i], doubled[i], (int)stride / 2);
          colour[i] = doubled[i];
        }
      }
      int from = box.left - first * wide;
      pixels->put_colours(planes[0] + (y - begin) * stride + from, colour[0] + from, colour[1] + from,
                          out + (ptrdiff_t)(y - box.top) * 3 * box.width, box.width);
    }
  }
  return DECODED;
}

/* Decode the box [top, top + height) x [left, left + width) of `data` into `out`, RGB of height x width x 3 bytes.
   Gives 0, or else says that another decoder has to do it. `plain` leaves AVX2 alone. */
int jpeg_region(const uint8_t *data, size_t size, int top, int left, int height, int width, uint8_t *out, int plain) {
  static __thread Scratch kept;
  Image *image = at_least(&kept, sizeof *image);
  if (image == NULL) return OTHER_KIND;
  image->restart = 0;
  memset(image->components, 0, sizeof image->components);
  memset(image->factors, 0, sizeof image->factors);
  memset(image->factors_there, 0, sizeof image->factors_there);
  for (int i = 0; i < TABLES; i++) image->dc[i].there = image->ac[i].there = 0;
  int problem = read_header(image, data, size);
  if (problem) return problem;
  if (top < 0 || left < 0 || height < 1 || width < 1) return OTHER_KIND;
  if (height > image->height - top || width > image->width - left) return OTHER_KIND;
  Pixels pixels = pixels_here(plain);
  return read_box(image, (Box){top, left, height, width}, &pixels, out);
}
