"""What tests share: tiny models and text, scripted clients, engines that change what crosses, and real processes."""
