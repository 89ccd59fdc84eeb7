# SPDX-License-Identifier: GPL-2.0-or-later
// A laptop's battery that is nearly empty, and its power adapter, which is not plugged in: what
// ACPI 6.5, chapter 10 ("Power Source and Power Meter Devices"), asks of either.
DefinitionBlock ("", "SSDT", 2, "KJUMP", "BATTERY", 1)
{
    Scope (\_SB)
    {
        Device (ADP0)
        {
            Name (_HID, "ACPI0003")
            Method (_STA) { Return (0x0F) } // present, enabled, shown, functioning
            Method (_PSR) { Return (0) } // offline
            Method (_PCL) { Return (Package () { \_SB }) } // what it would power
        }

        Device (BAT0)
        {
            Name (_HID, EisaId ("PNP0C0A"))
            Name (_UID, 1)
            Method (_STA) { Return (0x1F) } // as above, and there is a battery in it
            Method (_PCL) { Return (Package () { \_SB }) }

            Method (_BIF)
            {
                Return (Package ()
                {
                    0, // what follows is in mWh, mW and mV
                    50000, // capacity by design
                    50000, // when it was last full
                    1, // rechargeable
                    12000, // voltage by design
                    2500, // warn below this
                    500, // low
                    10, // granularity of what remains, above and below "warn"
                    10,
                    "KJUMP", // model
                    "1", // serial number
                    "LION",
                    "KJUMP" // maker
                })
            }

            Method (_BST)
            {
                Return (Package ()
                {
                    1, // discharging
                    10000, // at this rate
                    500, // what remains: 1 % of what it had when full
                    11000 // voltage
                })
            }
        }
    }
}
