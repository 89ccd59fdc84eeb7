/*
 * jump: back into the session's kernel.
 *
 * Used twice: by the helper, staged with a plain kexec (jump back), and by the boot side, as one
 * page of the restored memory to which the kernel's /dev/snapshot jumps (restore).  Both times the
 * code runs at its physical address with interrupts off; what is mapped besides differs, so it
 * brings its own tables.
 *
 * The session's kernel expects what kexec itself would give it (arch/x86/kernel/
 * relocate_kernel_64.S): identity mapping of its control page, plain CR0 and CR4, a readable word
 * at 0(%rsp).  The loader fills the three quads at `parameters`, physical addresses.
 *
 * `kept` is the other way in, for a helper that wants to be entered again: its kernel, leaving with
 * its context preserved, calls the code with its own re-entry address at 0(%rsp).  That address
 * must be what the session's kernel finds at 0(%rsp) in its turn (it keeps it as the start of its
 * staged image).  So it goes from the kernel's stack, which the tables below do not map, to ours.
 */
#define CR4_PAE		(1 << 5)
#define CR4_MCE		(1 << 6)
#define CR4_LA57	(1 << 12)
#define CR0_EM		(1 << 2)
#define CR0_TS		(1 << 3)
#define CR0_WP		(1 << 16)
#define CR0_AM		(1 << 18)

	.code64
	.text
	.globl	start
start:
	endbr64					/* the boot kernel may track indirect branches */
	cli
	cld
	movq	%cr4, %rax			/* no CET, LASS, SMEP, PCID, global pages: ... */
	andl	$(CR4_PAE | CR4_MCE | CR4_LA57), %eax
	movq	%rax, %cr4			/* ... the session's kernel brings back its own */
	movq	%cr0, %rax
	andl	$~(CR0_EM | CR0_TS | CR0_WP | CR0_AM), %eax
	movq	%rax, %cr0
	movq	tables(%rip), %rax
	movq	%rax, %cr3			/* maps this page, the stack and the target */
	movq	stack(%rip), %rsp
	jmpq	*target(%rip)

	.org	0x60
	.globl	kept
kept:
	endbr64
	movq	(%rsp), %rax			/* the helper's re-entry address ... */
	movq	stack(%rip), %rcx
	movq	%rax, (%rcx)			/* ... is where the session will look */
	jmp	start

	.org	0x80
	.globl	parameters
parameters:
tables:	.quad	0				/* top-level page table */
stack:	.quad	0				/* 0(stack) must be readable */
target:	.quad	0				/* the jump-back address */
	.org	0x100
	.section .note.GNU-stack, "", @progbits
