/* Multiboot entry, descriptor tables and interrupt entries of the freestanding guest. */

#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 0x2 /* we want the memory fields */

	.section .multiboot, "a"
	.align 4
	.long MULTIBOOT_MAGIC
	.long MULTIBOOT_FLAGS
	.long -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

	.section .bss
	.align 16
stack:
	.skip 16384
stack_top:

	.section .data
	.align 8
gdt:
	.quad 0
	.quad 0x00cf9a000000ffff /* 0x08: flat 4 GiB code */
	.quad 0x00cf92000000ffff /* 0x10: flat 4 GiB data */
gdt_pointer:
	.word . - gdt - 1
	.long gdt

	.text
	.global start
start:
	cli
	lgdt gdt_pointer
	ljmp $0x08, $1f
1:	mov $0x10, %cx
	mov %cx, %ds
	mov %cx, %es
	mov %cx, %fs
	mov %cx, %gs
	mov %cx, %ss
	mov $stack_top, %esp
	xor %ebp, %ebp
	push %ebx /* multiboot information */
	push %eax /* multiboot magic */
	call guest_main
2:	cli
	hlt
	jmp 2b

	/* The interval timer: only wakes the processor from hlt, so count and acknowledge. */
	.global timer_entry
timer_entry:
	push %eax
	incl timer_ticks
	mov $0x20, %al
	outb %al, $0x20
	pop %eax
	iret

	.global spurious_entry
spurious_entry:
	iret

	.global exception_entry
exception_entry:
	cli
	call guest_exception
	jmp 2b
