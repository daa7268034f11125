//! From 32-bit protected mode without paging to Rust, and from Rust to Linux.
//!
//! Every vCPU starts at the image's first byte in the state in which a TDX vCPU starts. Nothing is
//! measured of the registers but on SNP, so none is used but, on TDX, ESI: there every vCPU starts at
//! once, and ESI is its number.
//!
//! The page tables map the first 4 GiB twice, in pages of 2 MiB: at 0 as private, at 512 GiB as shared
//! memory. On SNP the bit that the boot block names marks what is private, on TDX what is shared. Page
//! tables themselves are always private (APM volume 2, 15.34.5), so CR3 needs no bit.
//!
//! A boot block that names no TEE is refused under SEV-SNP here already: with paging and without the C-bit every datum
//! would be the host's. CPUID is asked first. Under SNP it raises #VC, the one exception that has a gate here, which tells
//! the host the number by the GHCB MSR; a host that does not intercept it lets the processor answer, and then SEV_STATUS,
//! which no host can intercept (APM volume 2, 15.34.10), says what is on. Where CPUID does not know SEV the MSR is not
//! read, so nothing faults without a TEE. Any other exception, injected ones too, finds no gate and is the end.
//!
//! What the working memory holds is the host's choice on TDX, where it is added without being measured: the first vCPU fills it
//! with zeros before anything is read of it. The two words that are needed earlier are in the measured image.
//!
//! SSE is enabled before the first Rust function, which may use its registers.

use core::arch::{asm, global_asm};

use kata_cc_stage0::boot::Entry;
use kata_cc_stage0::identity::IdentityMemory;
use kata_cc_stage0::platform::{REASON_SET, SHARED_WINDOW, Termination, layout};

// the entry code has these as numbers
const _: () = assert!(Termination::UnnamedTee.code() == 0x4B && REASON_SET == 2);
const _: () = assert!(layout::IMAGE + layout::MEASURED_MAX <= 0x11_0000);
const _: () = assert!(layout::BOOT_BLOCK == 0x1F_F000 && layout::IMAGE == 0x10_0000);
const _: () = assert!(SHARED_WINDOW == 1 << 39);

global_asm!(
    r#"
    .section .stage0.entry, "awx"
    .code32
    .global stage0_entry
stage0_entry:
    cli
    cld
    jmp 2f
    .org 16
    .ascii "KCCIMG0\0"
    .long 1
    .long stage0_image_bytes
    .long stage0_working_bytes
    .long 0
stage0_tables_ready:
    .long 0
stage0_entered:
    .long 0
2:
    mov eax, dword ptr [0x1FF00C]       // platform
    cmp eax, 3
    jb 4f
    test esi, esi
    jz 4f
3:  // TDX, not the first vCPU: waits until there are page tables
    pause
    cmp dword ptr [stage0_tables_ready], 0
    je 3b
    jmp 8f

4:  // Only one vCPU gets further, and only once. On SNP every vCPU has a measured state that begins here,
    // which the host can run when it likes: beside the first one, on its stack, or again under Linux.
    lock bts dword ptr [stage0_entered], 0
    jc stage0_stop
    mov edx, eax
    mov edi, offset stage0_image_end
    mov ecx, offset stage0_working_bytes
    shr ecx, 2
    xor eax, eax
    rep stosd
    mov eax, edx
    cmp eax, 2
    je stage0_named
    cmp eax, 4
    jne stage0_unnamed
stage0_named:
    // edx: high half of a private entry; ebp: of a shared one
    mov ecx, dword ptr [0x1FF014]       // memory bit; 47 to 51 or none
    xor edx, edx
    xor ebp, ebp
    test ecx, ecx
    jz 6f
    sub ecx, 32
    xor ebx, ebx
    bts ebx, ecx
    cmp eax, 2
    jne 5f
    mov edx, ebx
    jmp 6f
5:  mov ebp, ebx
6:
    // 4 * 512 entries of 2 MiB in each of the two trees
    mov edi, offset stage0_tables + 0x3000
    mov eax, 0x83
    mov ecx, 2048
7:
    mov dword ptr [edi], eax
    mov dword ptr [edi + 4], edx
    mov dword ptr [edi + 0x4000], eax
    mov dword ptr [edi + 0x4004], ebp
    add eax, 0x200000
    add edi, 8
    dec ecx
    jnz 7b
    // eight page directories under two tables
    mov edi, offset stage0_tables + 0x1000
    mov eax, offset stage0_tables + 0x3003
    mov ecx, 4
7:
    mov dword ptr [edi], eax
    mov dword ptr [edi + 4], edx
    lea ebx, [eax + 0x4000]
    mov dword ptr [edi + 0x1000], ebx
    mov dword ptr [edi + 0x1004], edx
    add eax, 0x1000
    add edi, 8
    dec ecx
    jnz 7b
    mov edi, offset stage0_tables
    lea eax, [edi + 0x1003]
    mov dword ptr [edi], eax
    mov dword ptr [edi + 4], edx
    lea eax, [edi + 0x2003]
    mov dword ptr [edi + 8], eax
    mov dword ptr [edi + 12], edx
    mov dword ptr [stage0_tables_ready], 1

8:  // paging, SSE, 64-bit mode; a bit that is set stays set, as TDX demands
    mov eax, cr4
    or eax, 0x620                       // PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset stage0_tables
    mov cr3, eax
    mov ecx, 0xC0000080                 // EFER
    rdmsr
    bts eax, 8                          // LME: set on TDX, where writing is forbidden
    jc 9f
    wrmsr
9:
    mov eax, cr0
    and eax, 0xFFFFFFFB                 // not EM
    or eax, 0x80000003                  // PG, MP, PE
    mov cr0, eax
    lgdt [stage0_gdt_pointer]
    .byte 0xEA                          // far jump, 0x10:stage0_long
    .long stage0_long
    .word 0x10

stage0_stop:
    hlt
    jmp stage0_stop

stage0_unnamed:
    lgdt [stage0_gdt_pointer]
    lidt [stage0_idt_pointer]
    mov esp, offset stage0_stack_end
    // 32-bit interrupt gate of #VC (29): selector 0x20, and an address whose upper half is 0x10
    mov eax, offset stage0_in_tee
    add eax, 0x100000
    mov dword ptr [stage0_idt + 29 * 8], eax
    mov dword ptr [stage0_idt + 29 * 8 + 4], 0x108E00
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x8000001F
    jb 5f
    mov eax, 0x8000001F
    cpuid
    bt eax, 1                           // SEV
    jnc 5f
    mov ecx, 0xC0010131                 // SEV_STATUS
    rdmsr
    test eax, 7                         // SEV, SEV-ES, SEV-SNP
    jnz stage0_in_tee
5:  mov eax, dword ptr [0x1FF00C]
    jmp stage0_named

    // #VC, or found by asking. Never goes on: HLT under SNP is a #VC, which leads here again.
stage0_in_tee:
    mov eax, 0x4B2100                   // number, reason set, termination request
    xor edx, edx
    mov ecx, 0xC0010130                 // GHCB MSR
    wrmsr
    rep vmmcall                         // VMGEXIT
    jmp stage0_stop

    .code64
stage0_long:
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    cmp dword ptr [0x1FF00C], 3
    jb 5f
    mov esi, esi
    test esi, esi
    jnz stage0_ap
5:
    mov rsp, offset stage0_stack_end
    xor ebp, ebp
    call stage0_main
    ud2

    // ACPI 6.5, 5.2.12.19: command, APIC id, address. What waits here is never on a stack.
stage0_ap:
    mov edi, offset stage0_ap_mailbox
6:
    pause
    cmp word ptr [rdi], 1
    jne 6b
    cmp dword ptr [rdi + 4], esi
    jne 6b
    mov rax, qword ptr [rdi + 8]
    mov word ptr [rdi], 0
    jmp rax

    .balign 16
stage0_gdt:
    // null, null, 64-bit code, data: the selectors that Linux's boot protocol names; 32-bit code
    .quad 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CF9B000000FFFF
stage0_gdt_pointer:
    .word 39
    .long stage0_gdt
    .word 0, 0
stage0_idt_pointer:
    .word 30 * 8 - 1
    .long stage0_idt

    .section .stage0.tables, "aw", @nobits
    .balign 4096
stage0_tables:
    .skip 0xB000
    .global stage0_ap_mailbox
stage0_ap_mailbox:
    .skip 0x1000
stage0_idt:
    .skip 30 * 8

    .section .stage0.stack, "aw", @nobits
    .balign 4096
    .skip 0x8000
stage0_stack_end:
    .text
"#
);

#[unsafe(no_mangle)]
extern "C" fn stage0_main() -> ! {
    // SAFETY: called once, on the first vCPU, with the entry code's page tables.
    let memory = unsafe { IdentityMemory::new() };
    crate::run(memory)
}

/// Leaves the firmware for good: kernel documentation, `arch/x86/boot.rst`, "64-bit boot protocol".
pub(crate) fn enter_linux(entry: Entry) -> ! {
    // SAFETY: the kernel proved to be the measured one and lies where its entry says; selectors, page
    // tables and interrupt flag are as its boot protocol wants them. Nothing of Rust runs afterwards.
    unsafe {
        asm!(
            "xor ebp, ebp",
            "xor edi, edi",
            "xor ebx, ebx",
            "jmp rax",
            in("rax") entry.address,
            in("rsi") entry.parameters,
            options(noreturn)
        )
    }
}
