/* The PC as far as the guest needs it: ports, serial port, interval timer, time stamp counter. */
#ifndef MACHINE_H
#define MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COM1 0x3f8
#define PIC1 0x20
#define PIC2 0xa0
#define PIT 0x40
#define PIT_HZ 1193182u

static inline void out8(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port)
{
	uint8_t value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline uint64_t read_tsc(void)
{
	uint32_t low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

/* Sleep until the next interrupt. Interrupts are off at all other times. */
static inline void wait_for_interrupt(void)
{
	__asm__ volatile("sti; hlt; cli" : : : "memory");
}

static inline void serial_init(void)
{
	out8(COM1 + 1, 0x00); /* no interrupts: the guest polls */
	out8(COM1 + 3, 0x80);
	out8(COM1 + 0, 0x01); /* 115200 baud */
	out8(COM1 + 1, 0x00);
	out8(COM1 + 3, 0x03); /* 8n1 */
	out8(COM1 + 2, 0xc7); /* FIFOs on and empty */
	out8(COM1 + 4, 0x03);
}

static inline void serial_put(char c)
{
	while (!(in8(COM1 + 5) & 0x20))
		;
	out8(COM1, (uint8_t)c);
}

/* The next byte received, or -1. */
static inline int serial_get(void)
{
	return in8(COM1 + 5) & 0x01 ? in8(COM1) : -1;
}

/* Route only the interval timer, at `hz`, to vector 32. */
static inline void timer_init(uint32_t hz)
{
	uint32_t divisor = PIT_HZ / hz;

	out8(PIC1, 0x11);
	out8(PIC2, 0x11);
	out8(PIC1 + 1, 32);
	out8(PIC2 + 1, 40);
	out8(PIC1 + 1, 4);
	out8(PIC2 + 1, 2);
	out8(PIC1 + 1, 1);
	out8(PIC2 + 1, 1);
	out8(PIC1 + 1, 0xfe);
	out8(PIC2 + 1, 0xff);
	out8(PIT + 3, 0x34);
	out8(PIT, (uint8_t)divisor);
	out8(PIT, (uint8_t)(divisor >> 8));
}

/* The time stamp counter's rate, from 50 ms of the interval timer's second channel. */
static inline uint32_t tsc_khz(void)
{
	uint32_t count = PIT_HZ / 20;
	uint64_t begin;

	out8(0x61, (uint8_t)((in8(0x61) & ~0x02) | 0x01));
	out8(PIT + 3, 0xb0);
	out8(PIT + 2, (uint8_t)count);
	out8(PIT + 2, (uint8_t)(count >> 8));
	begin = read_tsc();
	while (!(in8(0x61) & 0x20))
		;
	return (uint32_t)(read_tsc() - begin) / 50;
}

#endif
