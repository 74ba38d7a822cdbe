# Entered by QEMU through the PVH note: 32-bit protected mode, paging off, EBX = start info.
# Builds the first page tables (4 GiB identity, everything allowed; replaced before anything but the
# boot code runs), turns on SSE, no-execute and long mode, and calls `boot` on the main stack.

    .section .note.pvh, "a", @note
    .balign 4
    .long 4                         # size of the name
    .long 4                         # size of the descriptor
    .long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

    .section .text.boot, "ax", @progbits
    .code32
    .global pvh_start
pvh_start:
    cli
    cld
    movl %ebx, %ebp
    leal {main_stack} + {main_stack_end}, %esp

    movl $0x80000000, %eax
    cpuid
    cmpl $0x80000001, %eax
    jb unfit
    movl $0x80000001, %eax
    cpuid
    andl $0x20100000, %edx          # long mode, no-execute
    cmpl $0x20100000, %edx
    jne unfit
    movl $1, %eax
    cpuid
    andl $0x07000220, %edx          # MSRs, APIC, FXSR, SSE, SSE2
    cmpl $0x07000220, %edx
    jne unfit

    movl $boot_pml4, %eax
    leal boot_pdpt + 3, %edx        # present, writable
    movl %edx, (%eax)
    movl $boot_pdpt, %eax
    leal boot_pd + 3, %edx
    movl $4, %ecx
1:  movl %edx, (%eax)
    addl $8, %eax
    addl $4096, %edx
    loop 1b
    movl $boot_pd, %eax
    movl $0x83, %edx                # present, writable, 2 MiB
    movl $2048, %ecx
2:  movl %edx, (%eax)
    addl $8, %eax
    addl $0x200000, %edx
    loop 2b

    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0x6a0, %eax               # PAE, PGE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0xc0000080, %ecx          # EFER: long mode, no-execute
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl $0x80010023, %eax          # PG, WP, NE, MP, PE; EM and TS clear
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $8, $long_mode

unfit:
    movl $unfit_text, %esi
    movl $0x3f8, %edx
3:  lodsb
    testb %al, %al
    jz 4f
    outb %al, %dx
    jmp 3b
4:  movl ${exit_failure}, %eax
    outl %eax, ${exit_port}
5:  hlt
    jmp 5b

    .code64
long_mode:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movq ${main_stack} + {main_stack_end}, %rsp
    movl %ebp, %edi
    xorl %ebp, %ebp
    call {boot}
    ud2

    .section .rodata.boot, "a", @progbits
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff        # code, 64 bit
    .quad 0x00cf92000000ffff        # data
boot_gdt_pointer:
    .word 23
    .long boot_gdt
unfit_text:
    .asciz "outrider: this processor lacks long mode, no-execute pages, an APIC or SSE2\r\n"

    .section .bss.boot, "aw", @nobits
    .balign 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd:   .skip 4 * 4096
